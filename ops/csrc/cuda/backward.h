// The backward kernel: all gradients in one pass over the points.
//
// With g = grad_output of the head, everything but grad_value follows from the four products g . corner of each
// point (sampling.h, point_grads). Every lane sums its channels of LANES points' products, and an exchange
// that halves the number of points at every step leaves lane i with the sums of point i, which is the point
// whose coordinates it holds.
#pragma once

#include "merge.h"

namespace ddetr_ops {

constexpr int kBackwardThreads = 256;

// grad_output of one query and head: in registers where D is known, else read again where it is needed.
template <typename C>
struct HeadGrad {
  using A = typename C::A;
  static constexpr int SLICES = C::D ? C::D / C::SPAN : 1;
  static_assert(C::D % C::SPAN == 0, "a known D has to be a whole number of slices");
  const typename C::T* from;
  A held[SLICES][C::V];

  DDETR_OPS_DEVICE HeadGrad(const Problem<typename C::T>& p, const Place<C>& at)
      : from(p.grad_output + at.item * at.channels + at.lane * C::V) {
    if constexpr (C::D != 0) {
#pragma unroll
      for (int s = 0; s < SLICES; ++s) load(from + s * C::SPAN, held[s]);
    }
  }
  DDETR_OPS_DEVICE int slices(const Place<C>& at) const {
    return C::D ? SLICES : (at.channels + C::SPAN - 1) / C::SPAN;
  }
  DDETR_OPS_DEVICE void slice(int s, A (&out)[C::V]) const {
    if constexpr (C::D != 0) {
#pragma unroll
      for (int v = 0; v < C::V; ++v) out[v] = held[s][v];
    } else {
      load(from + s * C::SPAN, out);
    }
  }
};

// Every lane's share of the products of point j of the group with the head's gradient.
template <typename C>
DDETR_OPS_DEVICE void point_products(const Problem<typename C::T>& p, const Place<C>& at, const HeadGrad<C>& grad,
                                     const Point<typename C::A>& point, int j, typename C::A (&out)[4]) {
  using A = typename C::A;
  const int32_t row = simt::shuffle<C::LANES>(point.row, j);
  const int32_t width = simt::shuffle<C::LANES>(point.width, j);
  const unsigned corners = simt::shuffle<C::LANES>(point.cell.corners, j);
  const typename C::T* base = p.value + at.map * at.channels + at.lane * C::V;
#pragma unroll
  for (int c = 0; c < 4; ++c) out[c] = A(0);
#pragma unroll(HeadGrad<C>::SLICES)
  for (int s = 0; s < grad.slices(at); ++s) {
    if (C::D == 0 && at.lane * C::V + s * C::SPAN >= at.channels) continue;
    A head_grad[C::V];
    grad.slice(s, head_grad);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      A corner[C::V] = {};
      if (corners >> c & 1u) load(at_row(base, p.value_row, corner_row(row, width, c)) + s * C::SPAN, corner);
#pragma unroll
      for (int v = 0; v < C::V; ++v) out[c] += head_grad[v] * corner[v];
    }
  }
}

// The products of the MANY points from `first` on, each summed over MANY lanes: lane i of these holds point
// first + i. Halves are joined by an exchange in which the lanes of each half keep their own half's points.
// A recursion, so that only log2(LANES) points' partial sums are alive at a time, in registers.
template <int MANY, typename C>
DDETR_OPS_DEVICE void owners_products(const Problem<typename C::T>& p, const Place<C>& at, const HeadGrad<C>& grad,
                                      const Point<typename C::A>& point, int first, typename C::A (&out)[4]) {
  if constexpr (MANY == 1) {
    point_products(p, at, grad, point, first, out);
  } else {
    constexpr int HALF = MANY / 2;
    typename C::A kept[4] = {}, given[4] = {};
#pragma unroll(MANY > C::AT_ONCE ? 1 : 2)
    for (int half = 0; half < MANY; half += HALF) {
      typename C::A products[4];
      owners_products<HALF>(p, at, grad, point, first + half, products);
      const bool mine = (at.lane & HALF) == half;
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        kept[c] = mine ? products[c] : kept[c];
        given[c] = mine ? given[c] : products[c];
      }
    }
#pragma unroll
    for (int c = 0; c < 4; ++c) out[c] = kept[c] + simt::shuffle_xor(given[c], HALF);
  }
}

// grad_value of the group's points, one addition per corner. For queries without neighbours.
template <typename C>
DDETR_OPS_DEVICE void add_directly(const Problem<typename C::T>& p, const Place<C>& at,
                                   const Point<typename C::A>& point) {
  using A = typename C::A;
  constexpr int WIDTH = C::V < 4 || sizeof(A) == 8 ? 1 : simt::kReductionWidth;
  constexpr int STEP = C::LANES * WIDTH;
  A weights[4];
  // A null grad_value (owners.h adds up instead) makes the weights zero: a branch around it all would double the code.
  corner_weights(point.cell, at.live && p.grad_value ? point.weight : A(0), weights);
  A* base = p.grad_value + at.map * at.channels;
  const typename C::T* grads = p.grad_output + at.item * at.channels;
#pragma unroll 1
  for (int begin = at.lane * WIDTH; begin - at.lane * WIDTH < at.channels; begin += STEP) {
    const bool mine = begin < at.channels;
    A grad[WIDTH] = {};
    if (mine) load(grads + begin, grad);
#pragma unroll 2
    for (int j = 0; j < C::LANES; ++j) {
      const int32_t row = simt::shuffle<C::LANES>(point.row, j);
      const int32_t width = simt::shuffle<C::LANES>(point.width, j);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const A weight = simt::shuffle<C::LANES>(weights[c], j);
        if (weight == A(0) || !mine) continue;
        A share[WIDTH];
#pragma unroll
        for (int w = 0; w < WIDTH; ++w) share[w] = weight * grad[w];
        simt::reduce_add(at_row(base, p.grad_row, corner_row(row, width, c)) + begin, share);
      }
    }
  }
}

// Gradient of the reference points, this head's share: the sum over the level's points. `along` holds the
// derivatives by the reference's coordinates of this lane's point, zero for a point that does not exist.
template <typename C>
DDETR_OPS_DEVICE void add_reference_grads(const Problem<typename C::T>& p, const Place<C>& at, int first, int32_t level,
                                          const typename C::A (&along)[4]) {
  using A = typename C::A;
  const int beyond = first + C::LANES, last = (beyond < at.all_points() ? beyond : at.all_points()) - 1;
  for (int32_t l = first / at.points; l <= last / at.points; ++l) {
    A* to = p.grad_reference + (at.item * at.levels + l) * p.reference_size;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      if (r >= p.reference_size) break;
      A sum = level == l ? along[r] : A(0);
#pragma unroll
      for (int step = C::LANES / 2; step; step /= 2) sum += simt::shuffle_xor(sum, step);
      if (at.live && at.lane == 0) to[r] += sum;
    }
  }
}

// Writes the gradients of this lane's point. Fused: `kept` keeps the weight's gradient for finish_softmax.
template <typename C>
DDETR_OPS_DEVICE void write_point_grads(const Problem<typename C::T>& p, const Place<C>& at, int first,
                                        const Point<typename C::A>& point, const PointGrads<typename C::A>& grads,
                                        typename C::A* kept) {
  using A = typename C::A;
  const int count = at.all_points(), index = first + at.lane;
  const bool exists = index < count;
  const int64_t entry = at.item * count + index;
  if constexpr (!C::FUSED) {
    if (!exists || !at.live) return;
    store_point_value(p, p.grad_where, 2 * entry, grads.x * A(point.width));
    store_point_value(p, p.grad_where, 2 * entry + 1, grads.y * A(point.height));
    store_point_value(p, p.grad_how_much, entry, grads.weight);
  } else {
    const A norm_x = grads.x * A(point.width), norm_y = grads.y * A(point.height);
    A along[4] = {exists ? norm_x : A(0), exists ? norm_y : A(0), A(0), A(0)};
    A offset_x = grads.x, offset_y = grads.y;
    if (p.reference_size == 4 && exists) {
      const A* reference =
          p.reference + (at.query_item * at.levels + point.level) * p.reference_size;
      const A half = A(0.5) / A(at.points);
      along[2] = norm_x * half * load_point_value<A>(p, p.where, 2 * entry);
      along[3] = norm_y * half * load_point_value<A>(p, p.where, 2 * entry + 1);
      offset_x = norm_x * (half * reference[2]);
      offset_y = norm_y * (half * reference[3]);
    }
    add_reference_grads(p, at, first, point.level, along);
    if (!exists) return;
    kept[index] = grads.weight;
    if (!at.live) return;
    store_point_value(p, p.grad_where, 2 * entry, offset_x);
    store_point_value(p, p.grad_where, 2 * entry + 1, offset_y);
  }
}

// From the weights' gradients to the logits': a_i (ga_i - sum_j a_j ga_j). `kept` is only ever read by the
// lane that wrote it.
template <typename C>
DDETR_OPS_DEVICE void finish_softmax(const Problem<typename C::T>& p, const Place<C>& at,
                                     const Softmax<typename C::A>& softmax, const typename C::A* kept) {
  using A = typename C::A;
  const int count = at.all_points();
  const int64_t first = at.item * count;
  A dot = 0;
  for (int i = at.lane; i < count; i += C::LANES)
    dot += softmax(load_point_value<A>(p, p.how_much, first + i)) * kept[i];
#pragma unroll
  for (int step = C::LANES / 2; step; step /= 2) dot += simt::shuffle_xor(dot, step);
  if (!at.live) return;
  for (int i = at.lane; i < count; i += C::LANES) {
    const A weight = softmax(load_point_value<A>(p, p.how_much, first + i));
    store_point_value(p, p.grad_how_much, first + i, weight * (kept[i] - dot));
  }
}

// Leaves the point for the deterministic kernel (owners.h).
template <typename C>
DDETR_OPS_DEVICE void leave_trail(const Problem<typename C::T>& p, const Place<C>& at, int index,
                                  const Point<typename C::A>& point) {
  if (index >= at.all_points() || !at.live) return;
  const int64_t level = static_cast<int64_t>(at.batch * p.heads + at.head) * at.levels + point.level;
  typename C::A* to = p.trail + 3 * ((level * p.queries + at.query) * at.points + index % at.points);
  to[0] = point.x;
  to[1] = point.y;
  to[2] = point.weight;
}

enum class Scatter { kDirect, kMerged };

// Bytes of shared memory: what the softmax keeps, then the merge's tables.
template <typename C, Scatter SCATTER>
int64_t backward_shared_bytes(int threads, const Problem<typename C::T>& p) {
  using A = typename C::A;
  const int groups = threads / C::LANES;
  const int64_t kept = C::FUSED ? (int64_t(groups) * p.levels * p.points * sizeof(A) + 15) / 16 * 16 : 0;
  return kept + (SCATTER == Scatter::kMerged ? MergeTables<A>::bytes(threads, groups, p.channels) : 0);
}

template <typename C, Scatter SCATTER>
DDETR_OPS_KERNEL(kBackwardThreads, 2) backward_kernel(Problem<typename C::T> p) {
  using A = typename C::A;
  const Place<C> at(p);
  const int count = at.all_points(), threads = simt::block_threads();
  const HeadGrad<C> grad(p, at);
  unsigned char* shared = simt::shared_memory();
  A* kept = reinterpret_cast<A*>(shared) + at.group * count;
  if constexpr (C::FUSED) shared += (at.groups * count * sizeof(A) + 15) / 16 * 16;
  MergeTables<A> tables(shared, threads, at.groups, at.channels);
  if constexpr (SCATTER == Scatter::kMerged) {
    tables.clear_all(simt::thread(), threads);
    A* row = tables.grads + at.group * at.channels;
#pragma unroll(HeadGrad<C>::SLICES)
    for (int s = 0; s < grad.slices(at); ++s) {
      const int channel = at.lane * C::V + s * C::SPAN;
      if (C::D == 0 && channel >= at.channels) continue;
      A slice[C::V];
      grad.slice(s, slice);
#pragma unroll
      for (int v = 0; v < C::V; ++v) row[channel + v] = slice[v];
    }
    simt::block_barrier();
  }

  Softmax<A> softmax{};
  if constexpr (C::FUSED) softmax = softmax_of_group(p, at);
#pragma unroll 1
  for (int first = 0; first < count; first += C::LANES) {
    const Point<A> point = prepare(p, at, first + at.lane, softmax);
    if constexpr (SCATTER == Scatter::kMerged) {
      merge_and_add(p, at, tables, point);
    } else {
      add_directly(p, at, point);
    }
    A products[4];
    owners_products<C::LANES>(p, at, grad, point, 0, products);
    const PointGrads<A> grads = point_grads(point.cell, point.weight, products);
    write_point_grads(p, at, first, point, grads, kept);
    if (p.trail) leave_trail(p, at, first + at.lane, point);
  }
  if constexpr (C::FUSED) finish_softmax(p, at, softmax, kept);
}

}  // namespace ddetr_ops
