// A GPU made of one CPU thread, for ops/csrc/cuda/simt.h: every GPU thread is a coroutine with a stack of its own.
//
// A block's threads run one after the other, each up to its next exchange with its warp or wait for its block;
// who has all partners waiting goes on. Lanes and warps take turns in an order that always changes, and warps
// run ahead of each other as far as barriers let them, so that a result that hangs on a missing barrier shows as
// a wrong number. A wait that some partner never joins is an error, not a hang. Neither speed nor memory ordering
// is emulated.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#define DDETR_OPS_KERNEL(threads, blocks) void
#define DDETR_OPS_DEVICE inline

namespace simt {

#if !defined(DDETR_OPS_EMULATED_REDUCTION_WIDTH)
#define DDETR_OPS_EMULATED_REDUCTION_WIDTH 4
#endif
constexpr int kReductionWidth = DDETR_OPS_EMULATED_REDUCTION_WIDTH;
constexpr int kStackBytes = 64 * 1024;

enum class State { kReady, kWaitsForWarp, kWaitsForBlock, kDone };

struct Thread {
  ucontext_t context;
  State state;
  int exchanges;  // how many there were: even and odd ones use different mailboxes
  std::unique_ptr<char[]> stack;
};

struct Warp {
  alignas(16) unsigned char mailbox[2][32][16];
};

struct Block {
  ucontext_t scheduler;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<unsigned char> shared;
  unsigned index = 0;
  int current = 0;
  int64_t additions = 0;  // to global memory, since the program started
};

inline Block& machine() {
  static Block block;
  return block;
}

inline int thread() { return machine().current; }
inline int block_threads() { return static_cast<int>(machine().threads.size()); }
inline unsigned block() { return machine().index; }
inline unsigned char* shared_memory() {
  unsigned char* raw = machine().shared.data();
  return raw + (16 - reinterpret_cast<uintptr_t>(raw) % 16) % 16;
}

inline void wait(State state) {
  Block& block = machine();
  Thread& me = block.threads[static_cast<size_t>(block.current)];
  me.state = state;
  swapcontext(&me.context, &block.scheduler);
}
inline void block_barrier() { wait(State::kWaitsForBlock); }

// Puts a value into my mailbox, waits for the warp, and reads lane `source` of the warp's.
template <typename V, typename Read>
auto exchange_in_warp(V value, const Read& read) {
  static_assert(sizeof(V) <= 16);
  Thread& me = machine().threads[static_cast<size_t>(thread())];
  Warp& warp = machine().warps[static_cast<size_t>(thread() / 32)];
  auto& mailbox = warp.mailbox[me.exchanges++ % 2];
  std::memcpy(mailbox[thread() % 32], &value, sizeof value);
  wait(State::kWaitsForWarp);
  return read([&mailbox](int lane) {
    V theirs;
    std::memcpy(&theirs, mailbox[lane], sizeof theirs);
    return theirs;
  });
}

template <int WIDTH, typename V>
V shuffle(V value, int source) {
  const int lane = thread() % 32 / WIDTH * WIDTH + source % WIDTH;
  return exchange_in_warp(value, [lane](const auto& of) { return of(lane); });
}
template <typename V>
V shuffle_xor(V value, int mask) {
  const int lane = thread() % 32 ^ mask;
  return exchange_in_warp(value, [lane](const auto& of) { return of(lane); });
}
inline unsigned ballot(bool vote) {
  return exchange_in_warp(vote, [](const auto& of) {
    unsigned bits = 0;
    for (int lane = 0; lane < 32; ++lane) bits |= static_cast<unsigned>(of(lane)) << lane;
    return bits;
  });
}
inline int lowest_bit(unsigned bits) { return std::countr_zero(bits); }

inline int compare_exchange(int* at, int expected, int wanted) {
  const int old = *at;
  if (old == expected) *at = wanted;
  return old;
}
inline int exchange(int* at, int value) { return std::exchange(*at, value); }
inline int fetch_add(int* at, int value) { return std::exchange(*at, *at + value); }

template <typename A, int N>
void reduce_add(A* at, const A (&values)[N]) {
  for (int i = 0; i < N; ++i) at[i] += values[i];
  ++machine().additions;
}

// Lets the threads [first, last) go on if every one of them has come to wait for the others.
inline bool release(Block& block, size_t first, size_t last, State state) {
  const auto begin = block.threads.begin() + static_cast<long>(first);
  const auto end = block.threads.begin() + static_cast<long>(last);
  // A thread that has left the kernel is not missed by its block, but by its warp.
  const bool all = std::all_of(begin, end, [state](const Thread& t) {
    return t.state == state || (t.state == State::kDone && state == State::kWaitsForBlock);
  });
  bool any = false;
  for (auto t = begin; all && t != end; ++t) {
    if (t->state != state) continue;
    t->state = State::kReady;
    any = true;
  }
  return any;
}

inline bool release_warp(Block& block, size_t warp) {
  return release(block, 32 * warp, 32 * warp + 32, State::kWaitsForWarp);
}

template <typename Problem>
struct Call {
  void (*kernel)(Problem);
  const Problem* problem;
  static inline Call current;
  static void enter() {
    current.kernel(*current.problem);
    wait(State::kDone);
  }
};

inline void run_thread(Block& block, size_t index) {
  if (block.threads[index].state != State::kReady) return;
  block.current = static_cast<int>(index);
  swapcontext(&block.scheduler, &block.threads[index].context);
}

template <typename Problem>
bool run_block(Block& block, std::minstd_rand& random) {
  for (Thread& thread : block.threads) {
    thread.state = State::kReady;
    thread.exchanges = 0;
    getcontext(&thread.context);
    if (!thread.stack) thread.stack = std::make_unique<char[]>(kStackBytes);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStackBytes;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, Call<Problem>::enter, 0);
  }
  std::vector<size_t> warps(block.warps.size()), lanes(32);
  std::iota(warps.begin(), warps.end(), 0);
  std::iota(lanes.begin(), lanes.end(), 0);
  bool any = true;
  while (any) {
    any = false;
    std::shuffle(warps.begin(), warps.end(), random);
    for (size_t warp : warps) {
      // Every other time as far as the warp gets without the block, so that warps drift apart.
      const bool far = random() & 64u;
      bool goes_on = true;
      for (int step = 0; goes_on && (far || step == 0); ++step) {
        std::shuffle(lanes.begin(), lanes.end(), random);
        for (size_t lane : lanes) run_thread(block, 32 * warp + lane);
        goes_on = release_warp(block, warp);
        any = any || goes_on;
      }
    }
    any = release(block, 0, block.threads.size(), State::kWaitsForBlock) || any;
  }
  return std::all_of(block.threads.begin(), block.threads.end(),
                     [](const Thread& t) { return t.state == State::kDone; });
}

template <typename Problem>
const char* launch(void (*kernel)(Problem), int64_t blocks, int threads, int64_t shared_bytes, void*,
                   const Problem& problem) {
  static std::minstd_rand random(1);
  if (threads % 32 != 0 || threads > 1024) return "a block must be whole warps";
  Block& block = machine();
  block.threads.resize(static_cast<size_t>(threads));
  block.warps.resize(static_cast<size_t>(threads / 32));
  Call<Problem>::current = {kernel, &problem};
  for (int64_t i = 0; i < blocks; ++i) {
    block.index = static_cast<unsigned>(i);
    block.shared.assign(static_cast<size_t>(shared_bytes + 16), 0xcd);  // what a GPU leaves there is not zero either
    if (!run_block<Problem>(block, random)) return "threads wait for each other for ever";
  }
  return nullptr;
}

inline const char* use_device(int) { return nullptr; }

}  // namespace simt
