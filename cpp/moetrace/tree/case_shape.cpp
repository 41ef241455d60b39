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
  for (const Positions& place : shape.places) {
    std::int64_t before = -1;
    for (const std::int64_t position : place) {
      if (position < 0 || position >= shape.length) {
        throw std::invalid_argument("patch position " + std::to_string(position) +
                                    " is not inside a prompt of " + std::to_string(shape.length) + " tokens");
      }
      if (position <= before) throw std::invalid_argument("the patch positions of a place must ascend");
      before = position;
    }
  }
}

}  // namespace moetrace::tree
