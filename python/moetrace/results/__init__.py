"""Results: tables, statistics, pictures and files of traces."""
