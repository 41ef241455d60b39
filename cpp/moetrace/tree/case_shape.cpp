#include "moetrace/tree/case_shape.h"

#include <stdexcept>
#include <string>

namespace moetrace::tree {

void check(const CaseShape& shape) {
  if (shape.length < 1) throw std::invalid_argument("a prompt needs at least one token");
  if (shape.subject_start < 0 || shape.subject_start >= shape.subject_stop ||
      shape.subject_stop > shape.length) {
    throw std::invalid_argument("subject span [" + std::to_string(shape.subject_start) + ", " +
                                std::to_string(shape.subject_stop) + ") is not inside a prompt of " +
                                std::to_string(shape.length) + " tokens");
  }
  if (shape.patch_position < 0 || shape.patch_position >= shape.length) {
    throw std::invalid_argument("patch position " + std::to_string(shape.patch_position) +
                                " is not inside a prompt of " + std::to_string(shape.length) + " tokens");
  }
}

}  // namespace moetrace::tree
