#include "moetrace/experts/knock_out.h"

#include <algorithm>
#include <string>

#include "moetrace/hooks/failure.h"
#include "moetrace/hooks/rows.h"

namespace moetrace::experts {

Tensor KnockOut::vectors(const Tensor& contribution, const std::vector<RoutingUnion>& routing,
                         const std::vector<std::int64_t>& clean, const std::string& name) const {
  const std::int64_t top_k = contribution.size(1), width = contribution.size(2);
  const std::int64_t zero = contribution.size(0) * top_k;  // a line of zeros behind all contributions
  std::vector<float> behind(static_cast<std::size_t>(width), 0.0F);
  std::vector<std::int64_t> first;  // line of each item's first replacement
  for (const Replacements& own : instead) {
    first.push_back(zero + static_cast<std::int64_t>(behind.size()) / width);
    if (static_cast<std::int64_t>(own.vectors.size()) !=
        static_cast<std::int64_t>(own.experts.size()) * width) {
      throw std::invalid_argument(name + ": replacements need a vector of width " + std::to_string(width) +
                                  " for each expert");
    }
    behind.insert(behind.end(), own.vectors.begin(), own.vectors.end());
  }
  const std::int64_t added = static_cast<std::int64_t>(behind.size()) / width;
  const Tensor given =
      ops::to(ops::to_device(ops::from_vector(behind, {added, width}, ScalarType::Float), contribution),
              contribution.scalar_type());
  const Tensor lines = ops::cat({ops::reshape(contribution, {zero, width}), given}, 0);

  std::vector<std::int64_t> comes, goes;
  for (std::size_t item = 0; item < routing.size(); ++item) {
    const RoutingUnion& own = routing[item];
    for (std::size_t slot = 0; slot < own.slots(); ++slot) {
      const std::int64_t place = own.clean_place[slot];
      goes.push_back(taken && place >= 0 ? clean[item] * top_k + place : zero);
      comes.push_back(zero);
      if (!named || place < 0) continue;
      const auto& known = instead.at(item).experts;
      const auto found = std::find(known.begin(), known.end(), own.expert[slot]);
      if (found == known.end()) {
        throw hooks::Failure(hooks::Trouble::kContribution,
                             name + ": expert " + std::to_string(own.expert[slot]) +
                                 " is routed to here, and wasn't in the pass that found what takes the "
                                 "experts' place: rounding decides between two experts; trace with "
                                 "compute_dtype='float32' or engine='reference'");
      }
      comes.back() = first[item] + (found - known.begin());
    }
  }
  const Tensor delta = ops::sub(ops::index_select(lines, hooks::RowIndex(std::move(goes)).on(lines)),
                                ops::index_select(lines, hooks::RowIndex(std::move(comes)).on(lines)));
  return ops::reshape(delta, {static_cast<std::int64_t>(routing.size()), 2 * top_k, width});
}

}  // namespace moetrace::experts
