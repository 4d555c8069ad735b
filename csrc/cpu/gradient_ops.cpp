// first_order_margin and dual_direction.
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/gradient_rows.h"
#include "cpu/ops.h"

namespace margin::cpu {
namespace {

template <typename T>
void first_order_margin_typed(const MarginArguments& arguments, const Parallel& parallel) {
  using A = Acc<T>;
  const GradientReader<T> reader(arguments.grad, arguments.batch, arguments.norm);
  const A* gap = static_cast<const A*>(arguments.gap);
  A* margin = static_cast<A*>(arguments.margin);
  A* norm = static_cast<A*>(arguments.norm_out);
  const auto finish = [&](int64_t i, const NormState<A>& state) {
    norm[i] = reader.norm(state);
    margin[i] = margin::first_order_margin(gap[i], norm[i], static_cast<A>(arguments.eps)).value;
  };
  if (split_rows(arguments.batch, reader.size(), parallel)) {
    const auto states = chunk_states(reader, arguments.batch, parallel);
    for (int64_t i = 0; i < arguments.batch; ++i) {
      finish(i, reader.combine(i, &states[i * reader.chunks()]));
    }
    return;
  }
  parallel.for_range(arguments.batch, grain_for(reader.size() * sizeof(T)),
                     [&](int64_t begin, int64_t end) {
                       for (int64_t i = begin; i < end; ++i) finish(i, reader.state(i));
                     });
}

template <typename T>
void dual_direction_typed(const DirectionArguments& arguments, const Parallel& parallel) {
  using A = Acc<T>;
  const GradientReader<T> reader(arguments.grad, arguments.batch, arguments.norm);
  const A* factor = static_cast<const A*>(arguments.factor);
  const auto direction_of = [&](int64_t i, const NormState<A>& state) {
    return reader.direction(state, reader.norm(state), factor[i]);
  };
  const auto base_of = [&](int64_t i) {
    const T* base = static_cast<const T*>(arguments.base);
    return base == nullptr ? nullptr : base + i * arguments.base_stride;
  };
  const auto out_of = [&](int64_t i) {
    return static_cast<T*>(arguments.out) + i * arguments.out_stride;
  };
  if (split_rows(arguments.batch, reader.size(), parallel)) {
    const int64_t chunks = reader.chunks();
    const auto states = chunk_states(reader, arguments.batch, parallel);
    std::vector<Direction<A>> directions(arguments.batch);
    for (int64_t i = 0; i < arguments.batch; ++i) {
      directions[i] = direction_of(i, reader.combine(i, &states[i * chunks]));
    }
    parallel.for_range(arguments.batch * chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t u = begin; u < end; ++u) {
        const int64_t i = u / chunks;
        reader.write_chunk(i, u % chunks, directions[i], base_of(i), out_of(i));
      }
    });
    return;
  }
  parallel.for_range(arguments.batch, grain_for(2 * reader.size() * sizeof(T)),
                     [&](int64_t begin, int64_t end) {
                       for (int64_t i = begin; i < end; ++i) {
                         reader.write(i, direction_of(i, reader.state(i)), base_of(i), out_of(i));
                       }
                     });
}

}  // namespace

void first_order_margin(const MarginArguments& arguments, const Parallel& parallel) {
  dispatch(arguments.grad.dtype,
           [&]<typename T>(Type<T>) { first_order_margin_typed<T>(arguments, parallel); });
}

void dual_direction(const DirectionArguments& arguments, const Parallel& parallel) {
  dispatch(arguments.grad.dtype,
           [&]<typename T>(Type<T>) { dual_direction_typed<T>(arguments, parallel); });
}

void scale(const ScaleArguments& arguments, const Parallel& parallel) {
  for (const ScaleArguments::Block& block : arguments.blocks) {
    if (block.data == nullptr) continue;
    dispatch(block.dtype, [&]<typename T>(Type<T>) {
      using A = Acc<T>;
      const A factor = *static_cast<const A*>(arguments.upstream) *
                       *static_cast<const A*>(arguments.gradient_scale);
      if (factor == 1) return;
      parallel.for_range(block.size, kChunk, [&](int64_t begin, int64_t end) {
        row_kernels<T>().scale(static_cast<T*>(block.data) + begin, end - begin, factor);
      });
    });
  }
}

}  // namespace margin::cpu
