// What a kernel of cubecl names of CUDA, for a C++ compiler: a simulation, with a fiber for each thread of a cube. Fibers
// run in turn, from one synchronisation to the next. It knows nothing of time and of data races.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>
#include <sys/mman.h>
#include <ucontext.h>

#define __device__
#define __global__
#define __grid_constant__
#define __launch_bounds__(threads)
#define __align__(bytes) alignas(bytes)

using std::exp, std::fabs, std::fma, std::max, std::min, std::sqrt, std::tanh;

struct Position { unsigned x, y, z; };
static const unsigned warpSize = 32;
static thread_local Position threadIdx, blockIdx, blockDim, gridDim;

// f16, with the rounding of each operation.
struct __half {
  _Float16 value;
  __half() = default;
  __half(_Float16 value) : value(value) {}
  __half(float number) : value((_Float16)number) {}
  __half(int number) : value((_Float16)number) {}
  operator float() const { return (float)value; }
};

namespace emulator {
constexpr int LANES = 32;
constexpr size_t STACK = 1 << 20;

// Those that wait for each other: a cube or a plane.
struct Group {
  int members = 0, arrived = 0, generation = 0;
};

struct Fiber {
  ucontext_t context;
  void *stack;
  bool done;
};

static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static size_t current;
static Group cube;
static std::vector<Group> planes;
static char *shared;
static void (*body)(void **);
static void **arguments;

// What the lanes of a plane show each other.
struct Exchange {
  uint32_t words[LANES][8];
  float sums[LANES][4];
};
static std::vector<Exchange> exchanges;

static void wait(Group &group) {
  const int generation = group.generation;
  if (++group.arrived == group.members) {
    group.arrived = 0;
    group.generation++;
    return;
  }
  while (group.generation == generation) {
    const Position position = threadIdx;
    swapcontext(&fibers[current].context, &scheduler);
    threadIdx = position;
  }
}

static Group &plane() { return planes[threadIdx.x / LANES]; }
static Exchange &exchange() { return exchanges[threadIdx.x / LANES]; }

// A thread that ends no longer keeps others waiting.
static void leave(Group &group) {
  group.members--;
  if (group.members > 0 && group.arrived == group.members) {
    group.arrived = 0;
    group.generation++;
  }
}

static void enter() {
  threadIdx = {(unsigned)current, 0, 0};
  body(arguments);
  threadIdx = {(unsigned)current, 0, 0};
  leave(plane());
  leave(cube);
  fibers[current].done = true;
  swapcontext(&fibers[current].context, &scheduler);
}

static void run_cube(unsigned threads) {
  cube = {(int)threads};
  planes.assign((threads + LANES - 1) / LANES, {LANES});
  exchanges.resize(planes.size());
  for (size_t i = 0; i < threads; i++) {
    getcontext(&fibers[i].context);
    fibers[i].context.uc_stack.ss_sp = fibers[i].stack;
    fibers[i].context.uc_stack.ss_size = STACK;
    fibers[i].context.uc_link = nullptr;
    fibers[i].done = false;
    makecontext(&fibers[i].context, enter, 0);
  }
  for (unsigned left = threads; left > 0;) {
    for (current = 0; current < threads; current++) {
      if (fibers[current].done) continue;
      swapcontext(&scheduler, &fibers[current].context);
      left -= fibers[current].done;
    }
  }
}

static float pair_product(uint32_t a, uint32_t b, float sum) {
  _Float16 x[2], y[2];
  std::memcpy(x, &a, 4);
  std::memcpy(y, &b, 4);
  return sum + (float)x[0] * (float)y[0] + (float)x[1] * (float)y[1];
}

// mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32, by the layouts of its fragments in the PTX documentation.
static void mma(float &d0, float &d1, float &d2, float &d3, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                uint32_t b0, uint32_t b1, float c0, float c1, float c2, float c3) {
  const unsigned lane = threadIdx.x % LANES, row = lane / 4, column = lane % 4 * 2;
  const uint32_t words[] = {a0, a1, a2, a3, b0, b1};
  std::memcpy(exchange().words[lane], words, sizeof words);
  wait(plane());
  float sums[4] = {c0, c1, c2, c3};
  for (int upper = 0; upper < 2; upper++) {
    for (int next = 0; next < 2; next++) {
      float &sum = sums[2 * upper + next];
      for (int high = 0; high < 2; high++) {
        for (int t = 0; t < 4; t++) {
          const uint32_t a = exchange().words[row * 4 + t][2 * high + upper];
          const uint32_t b = exchange().words[(column + next) * 4 + t][4 + high];
          sum = pair_product(a, b, sum);
        }
      }
    }
  }
  wait(plane());
  d0 = sums[0], d1 = sums[1], d2 = sums[2], d3 = sums[3];
}

template <typename Operation> static uint32_t both(uint32_t a, uint32_t b, uint32_t c, Operation operation) {
  _Float16 x[2], y[2], z[2];
  std::memcpy(x, &a, 4);
  std::memcpy(y, &b, 4);
  std::memcpy(z, &c, 4);
  for (int i = 0; i < 2; i++) x[i] = operation(x[i], y[i], z[i]);
  uint32_t out;
  std::memcpy(&out, x, 4);
  return out;
}

static uint32_t sub_f16x2(uint32_t a, uint32_t b) {
  return both(a, b, b, [](_Float16 x, _Float16 y, _Float16) { return (_Float16)(x - y); });
}

static uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
  return both(a, b, c, [](_Float16 x, _Float16 y, _Float16 z) { return (_Float16)((double)x * y + z); });
}

static uint32_t atomic_add(uint32_t *to, uint32_t number) {
  const uint32_t before = *to;
  *to += number;
  return before;
}

// Argument `number`, of any type.
struct Argument {
  void *at;
  template <typename T> operator T *() const { return static_cast<T *>(at); }
};
} // namespace emulator

static inline void __syncthreads() { emulator::wait(emulator::cube); }
static inline void __syncwarp() { emulator::wait(emulator::plane()); }
static inline unsigned __activemask() { return ~0u; }

template <typename T> static T __shfl_xor_sync(unsigned, T value, unsigned mask) {
  static_assert(sizeof(T) == 4);
  const unsigned lane = threadIdx.x % emulator::LANES;
  std::memcpy(&emulator::exchange().words[lane][0], &value, 4);
  emulator::wait(emulator::plane());
  std::memcpy(&value, &emulator::exchange().words[lane ^ mask][0], 4);
  emulator::wait(emulator::plane());
  return value;
}

static inline uint32_t atomicExch(uint32_t *to, uint32_t value) {
  const uint32_t before = *to;
  *to = value;
  return before;
}

static void kernel_of(void **arguments);

extern "C" void launch(unsigned x, unsigned y, unsigned z, unsigned threads, size_t shared_bytes, void **arguments) {
  using namespace emulator;
  while (fibers.size() < threads) {
    void *stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) std::abort();
    fibers.push_back({{}, stack, false});
  }
  shared = static_cast<char *>(std::aligned_alloc(16, (shared_bytes + 31) / 16 * 16));
  body = kernel_of;
  emulator::arguments = arguments;
  blockDim = {threads, 1, 1};
  gridDim = {x, y, z};
  for (blockIdx.z = 0; blockIdx.z < z; blockIdx.z++)
    for (blockIdx.y = 0; blockIdx.y < y; blockIdx.y++)
      for (blockIdx.x = 0; blockIdx.x < x; blockIdx.x++) {
        // What a cube finds there is undefined.
        std::memset(shared, 0xFF, shared_bytes);
        run_cube(threads);
      }
  std::free(shared);
}
