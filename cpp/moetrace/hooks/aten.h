#pragma once

// The one place where the core meets ATen. torch/extension.h takes ten times as long to parse.
#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
