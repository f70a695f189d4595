// grad_value with fewer additions to global memory.
//
// The queries of a block are neighbours, so the corners of their points share tokens: often on fine levels, nearly
// always on coarse ones. In every round each thread inserts the four corners of its point into a hash table in shared
// memory, keyed by token, with the corners of a token chained. Then each group takes a token, sums its chain in
// registers and sends one addition per channel. Sums in shared memory would not help: floating-point additions there
// compile to compare-and-swap loops.
#pragma once

#include "points.h"

namespace ddetr_ops {

constexpr int kEmpty = -1;

// The block's hash table. A corner is named by thread * 4 + corner.
template <typename A>
struct MergeTable {
  A* grads;     // (groups, D) grad_output of the block's queries
  A* weights;   // (corners,)
  int* next;    // (corners,) next corner of the same token
  int* used;    // (corners,) occupied slots, `count[0]` of them
  int* tokens;  // (slots,) keys
  int* chains;  // (slots,) first corner of each key
  int* count;
  int slots;

  static int64_t bytes(int threads, int groups, int64_t channels) {
    return groups * channels * sizeof(A) + 4 * threads * (sizeof(A) + 6 * sizeof(int)) + 16;
  }

  DDETR_OPS_DEVICE MergeTable(unsigned char* memory, int threads, int groups, int channels) {
    const int corners = 4 * threads;
    slots = 2 * corners;
    grads = reinterpret_cast<A*>(memory);
    weights = grads + groups * channels;
    next = reinterpret_cast<int*>(weights + corners);
    used = next + corners;
    tokens = used + corners;
    chains = tokens + slots;
    count = chains + slots;
  }

  DDETR_OPS_DEVICE void clear(int thread, int threads) {
    for (int i = thread; i < slots; i += threads) tokens[i] = chains[i] = kEmpty;
    if (thread == 0) *count = 0;
  }

  DDETR_OPS_DEVICE void insert(int32_t token, int corner, A weight) {
    unsigned slot = static_cast<unsigned>(token) * 2654435769u;  // 2^32 / golden ratio
    slot = (slot >> 16) & (slots - 1);
    for (;;) {
      const int owner = atomicCAS(tokens + slot, kEmpty, token);
      if (owner == kEmpty) used[atomicAdd(count, 1)] = static_cast<int>(slot);
      if (owner == kEmpty || owner == token) break;
      slot = (slot + 1) & (slots - 1);
    }
    weights[corner] = weight;
    next[corner] = atomicExch(chains + slot, corner);
  }
};

// One round: insert, sum, send, and leave the table empty. All threads of the block must call.
template <typename C>
DDETR_OPS_DEVICE void merge_and_add(const Params<typename C::T>& p, const Group<C>& group,
                                    MergeTable<typename C::A>& table, const Point<typename C::A>& point) {
  using A = typename C::A;
  constexpr int WIDTH = simt::kReductionWidth;
  constexpr int STEP = C::LANES * WIDTH;         // channels that a group sends at once
  constexpr int PARTS = C::D ? C::D / STEP : 1;  // of these, how many one walk along a chain sums
  const int thread = simt::thread(), threads = simt::block_threads();
  if (group.active) {
    A weights[4];
    corner_weights(point.cell, point.weight, weights);
#pragma unroll
    for (int c = 0; c < 4; ++c)
      if (weights[c] != A(0)) table.insert(corner_token(point.token, point.width, c), 4 * thread + c, weights[c]);
  }
  __syncthreads();
  const int count = *table.count;
  A* base = p.grad_value + group.value_row * group.channels;
  for (int i = group.index; i < count; i += group.count) {
    const int slot = table.used[i];
    A* to = at_token(base, p.grad_row, table.tokens[slot]);
    for (int begin = group.lane * WIDTH; begin < group.channels; begin += PARTS * STEP) {
      A sum[PARTS][WIDTH] = {};
      for (int corner = table.chains[slot]; corner != kEmpty; corner = table.next[corner]) {
        const A weight = table.weights[corner];
        const A* grads = table.grads + corner / (4 * C::LANES) * group.channels + begin;
#pragma unroll
        for (int part = 0; part < PARTS; ++part) {
          A grad[WIDTH];
          load(grads + part * STEP, grad);
#pragma unroll
          for (int w = 0; w < WIDTH; ++w) sum[part][w] += weight * grad[w];
        }
      }
#pragma unroll
      for (int part = 0; part < PARTS; ++part) simt::reduce_add(to + begin + part * STEP, sum[part]);
    }
  }
  __syncthreads();
  for (int i = thread; i < count; i += threads) {
    const int slot = table.used[i];
    table.tokens[slot] = table.chains[slot] = kEmpty;
  }
  if (thread == 0) *table.count = 0;
  __syncthreads();
}

}  // namespace ddetr_ops
