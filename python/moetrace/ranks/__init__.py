"""Many processes, one trace: ranks of torch.distributed that make the same calls share the cases.

>>> torch.distributed.init_process_group()        # under torchrun, on every rank
>>> layers = mt.trace_layers(model, cases)        # each rank traces some batches; all get the whole result

Batches are cut as one process cuts them and dealt out whole, so that numbers don't depend on how many ranks
there are, to the last bit where the machines and their threads are alike. Where a rank fails, is stopped or
is lost, the others stop too, with a :class:`moetrace.errors.RankError` that says which.
"""

from moetrace.ranks.call import ALONE, Alone, Call, alone, here, on_all_ranks
from moetrace.ranks.progress import progress_bar

__all__ = ["ALONE", "Alone", "Call", "alone", "here", "on_all_ranks", "progress_bar"]
