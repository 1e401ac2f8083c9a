// Fibers, barriers, the race checker and the server of simt.h; compiled without the checker's instrumentation.
#include "simt.h"
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <set>
#include <string>
#include <ucontext.h>
#include <unistd.h>
#include <unordered_map>
#include <vector>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace {
constexpr size_t STACK = 64 * 1024;

// ---- switching stacks: on x86-64 without the system call that swapcontext makes

#ifdef __x86_64__
using Context = void*;  // the stack pointer, below which the saved registers lie
extern "C" void simt_switch(void** from, void* to);
asm(R"(
.text
.globl simt_switch
simt_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");
void change(Context& from, Context& to) { simt_switch(&from, to); }
void prepare(Context& c, unsigned char* stack, void (*start)()) {
  void** top = reinterpret_cast<void**>(stack + STACK) - 2;
  *top = reinterpret_cast<void*>(start);  // where the first switch returns to
  c = top - 6;
}
#else
using Context = ucontext_t;
void change(Context& from, Context& to) { swapcontext(&from, &to); }
void prepare(Context& c, unsigned char* stack, void (*start)()) {
  getcontext(&c);
  c.uc_stack.ss_sp = stack; c.uc_stack.ss_size = STACK; c.uc_link = nullptr;
  makecontext(&c, start, 0);
}
#endif

enum State { READY, BARRIER, WARP, DONE };
struct Fiber {
  Context context; unsigned char* stack; dim3 thread; State state; int line; unsigned mask, turn; void* fake;
};
std::vector<Fiber> fibers;
Fiber* current;
Context scheduler;
[[maybe_unused]] void* scheduler_fake;
[[maybe_unused]] const void* scheduler_stack;
[[maybe_unused]] size_t scheduler_size;
simt::Body body; const void* call;
unsigned char slots[32][2][32][16];                 // warp, turn, lane
std::vector<unsigned char> dynamic_memory;
std::set<void*> shared;  // shared memory that this block has met
int order; unsigned seed;
unsigned block_number, block_epoch, warp_epoch[32];

unsigned number(const Fiber* f) { return f->thread.x; }

void to_scheduler([[maybe_unused]] bool last) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(last ? nullptr : &current->fake, scheduler_stack, scheduler_size);
#endif
  Fiber* self = current;
  change(self->context, scheduler);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(self->fake, nullptr, nullptr);
#endif
}
void trampoline() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
#endif
  body(call);
  current->state = DONE;
  to_scheduler(true);
}
void resume(Fiber& f) {
  current = &f; threadIdx = f.thread; f.state = READY;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&scheduler_fake, f.stack, STACK);
#endif
  change(scheduler, f.context);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr);
#endif
  current = nullptr;
}

#ifdef RACES
// ---- races: for each byte, who wrote and who read last; two accesses conflict unless a barrier (or warp barrier) lies between

struct Access { unsigned block, block_epoch, warp_epoch; unsigned short thread; bool atomic, used; };
struct Byte { Access write, read, other; unsigned launch; bool garbage; };  // `other`: a read by a second thread; garbage: shared, not yet written
unsigned launch_number;

Byte& shadow(uintptr_t at) {
  static std::unordered_map<uintptr_t, std::vector<Byte>> pages;
  static uintptr_t last = 0; static std::vector<Byte>* page = nullptr;
  if (!page || at / 4096 != last) {
    last = at / 4096; page = &pages[last];
    if (page->empty()) page->resize(4096);
  }
  Byte& b = (*page)[at % 4096];
  if (b.launch != launch_number) { b = Byte{}; b.launch = launch_number; }
  return b;
}
bool ordered(const Access& a) {
  if (!a.used) return true;
  if (a.block != block_number) return false;
  unsigned me = number(current);
  if (a.thread == me || a.block_epoch < block_epoch) return true;
  return a.thread / 32 == me / 32 && a.warp_epoch < warp_epoch[me / 32];
}
[[noreturn]] void race(const char* what, uintptr_t address, const Access& a) {
  fprintf(stderr, "simt: race: %s at %#lx: block %u thread %u and block %u thread %u\n", what, address, a.block, a.thread, block_number, number(current));
  _exit(66);
}
#endif
}

namespace simt {
void fail(const char* what, int line) {
  fprintf(stderr, "simt: %s (line %d)\n", what, line);
  _exit(65);
}
unsigned lane() { return number(current) % 32; }

void barrier(int line) { current->state = BARRIER; current->line = line; to_scheduler(false); }

const unsigned char* exchange(unsigned mask, const void* value, size_t size, int line) {
  unsigned me = number(current);
  if (!(mask >> me % 32 & 1)) fail("a lane that is not in its own mask", line);
  unsigned turn = current->turn++ & 1;
  memcpy(slots[me / 32][turn][me % 32], value, size);
  current->state = WARP; current->line = line; current->mask = mask;
  to_scheduler(false);
  return &slots[me / 32][turn][0][0];
}
void warp_barrier(unsigned mask, int line) { char nothing = 0; exchange(mask, &nothing, 1, line); }

void declare(void* memory, size_t size) {
  if (!shared.insert(memory).second) return;
  memset(memory, 0xC5, size);
#ifdef RACES
  for (size_t i = 0; i < size; i++) { Byte& b = shadow(reinterpret_cast<uintptr_t>(memory) + i); b = Byte{}; b.launch = launch_number; b.garbage = true; }
#endif
}
unsigned char* dynamic() {
  if (dynamic_memory.empty()) fail("dynamic shared memory was not asked for", 0);
  declare(dynamic_memory.data(), dynamic_memory.size());
  return dynamic_memory.data();
}

void touch(const volatile void* address, size_t size, bool write, bool atomic) {
#ifdef RACES
  if (!current) return;
  auto at = reinterpret_cast<uintptr_t>(address);
  if (at >= reinterpret_cast<uintptr_t>(current->stack) && at < reinterpret_cast<uintptr_t>(current->stack) + STACK) return;
  Access mine{block_number, block_epoch, warp_epoch[number(current) / 32], static_cast<unsigned short>(number(current)), atomic, true};
  for (size_t i = 0; i < size; i++, at++) {
    Byte& b = shadow(at);
    if (b.garbage && (!write || atomic)) {
      fprintf(stderr, "simt: race: shared memory is read before it is written: block %u thread %u\n", block_number, number(current));
      _exit(66);
    }
    if (write) b.garbage = false;
    if (!ordered(b.write) && !(atomic && b.write.atomic)) race(write ? "two writes" : "read after a write", at, b.write);
    if (write) {
      for (const Access& r : {b.read, b.other}) if (!ordered(r) && !(atomic && r.atomic)) race("write after a read", at, r);
      b.write = mine; b.read.used = b.other.used = false;
    } else if (!b.read.used || ordered(b.read)) b.read = mine;
    else if (!b.other.used || ordered(b.other)) b.other = mine;
  }
#else
  (void)address; (void)size; (void)write; (void)atomic;
#endif
}

void run(Body b, const void* c) {
  body = b; call = c;
  unsigned n = blockDim.x * blockDim.y * blockDim.z, blocks = gridDim.x * gridDim.y;
  if (blockDim.y != 1 || blockDim.z != 1 || gridDim.z != 1) fail("the shim knows blocks of one dimension", 0);
  if (n > 1024 || !n || !blocks) fail("the launch is empty or has more than 1,024 threads a block", 0);
  std::mt19937 random(seed);
  std::vector<unsigned> block_order(blocks), thread_order(n);
  auto arrange = [&](std::vector<unsigned>& v) {
    for (unsigned i = 0; i < v.size(); i++) v[i] = order == 1 ? v.size() - 1 - i : i;
    if (order == 2) std::shuffle(v.begin(), v.end(), random);
  };
  arrange(block_order);
  fibers.resize(std::max<size_t>(fibers.size(), n));
#ifdef RACES
  launch_number++;
#endif
  for (unsigned number : block_order) {
    block_number = number; block_epoch = 0; std::fill(warp_epoch, warp_epoch + 32, 0);
    shared.clear();
    blockIdx = {number % gridDim.x, number / gridDim.x, 0};
    for (unsigned i = 0; i < n; i++) {
      Fiber& f = fibers[i];
      if (!f.stack) f.stack = static_cast<unsigned char*>(aligned_alloc(64, STACK));
      f.thread = {i, 0, 0}; f.state = READY; f.turn = 0; f.fake = nullptr;
      prepare(f.context, f.stack, trampoline);
    }
    while (true) {
      arrange(thread_order);
      bool moved = false; unsigned done = 0, waiting = 0;
      for (unsigned i : thread_order) if (fibers[i].state == READY) { resume(fibers[i]); moved = true; }
      for (unsigned w = 0; w * 32 < n; w++)   // warp operations whose lanes are all there
        for (unsigned l = 0; l < 32 && w * 32 + l < n; l++) {
          Fiber& f = fibers[w * 32 + l];
          if (f.state != WARP) continue;
          bool all = true;
          for (unsigned k = 0; k < 32 && all; k++) if (f.mask >> k & 1)
            all = w * 32 + k < n && fibers[w * 32 + k].state == WARP && fibers[w * 32 + k].mask == f.mask && fibers[w * 32 + k].line == f.line;
          if (!all) continue;
          unsigned mask = f.mask;
          for (unsigned k = 0; k < 32; k++) if (mask >> k & 1) fibers[w * 32 + k].state = READY;
          if (mask == ~0u) warp_epoch[w]++;   // a partial mask orders its lanes only: left out, so the checker may be too strict there
          moved = true;
        }
      for (unsigned i = 0; i < n; i++) done += fibers[i].state == DONE, waiting += fibers[i].state == BARRIER;
      if (done == n) break;
      if (moved && waiting + done < n) continue;
      if (waiting == 0) fail("a shuffle, ballot or __syncwarp that not every lane of its mask reaches", fibers[thread_order[0]].line);
      if (waiting + done < n) {
        for (unsigned i = 0; i < n; i++) if (fibers[i].state == WARP) fail("a shuffle, ballot or __syncwarp that not every lane of its mask reaches", fibers[i].line);
        continue;
      }
      int line = 0;
      for (unsigned i = 0; i < n; i++) if (fibers[i].state == BARRIER) {
        if (line && fibers[i].line != line) fail("threads of a block wait at different __syncthreads", line);
        line = fibers[i].line;
      }
      if (done) fail("a __syncthreads that some threads of the block do not reach", line);
      for (unsigned i = 0; i < n; i++) fibers[i].state = READY;
      block_epoch++;
    }
  }
}

std::map<std::string, Kernel>& kernels() { static std::map<std::string, Kernel> all; return all; }
void add(const char* name, Kernel kernel, int) { kernels()[name] = kernel; }
void count(int given, int wanted) {
  if (given != wanted) { fprintf(stderr, "simt: %d arguments given, %d wanted\n", given, wanted); _exit(64); }
}
void check(int position, const Argument& given, bool array, char kind, unsigned size) {
  uint64_t word = 1; if (given.kind == 'u' && given.size == 8) memcpy(&word, given.data, 8);
  if (array && !word) return;  // a null pointer
  bool is_array = given.kind >= 'A' && given.kind <= 'Z';
  char have = is_array ? given.kind - 'A' + 'a' : given.kind;
  if (is_array != array || given.size != size || have != kind) {
    fprintf(stderr, "simt: argument %d is %s%c%u, the kernel takes %s%c%u\n", position, is_array ? "array of " : "", have, given.size,
            array ? "array of " : "", kind, size);
    _exit(64);
  }
}
}

// ---- the server

#ifdef RACES
extern "C" {
#define ACCESS(n) \
  void __tsan_read##n(void* a) { simt::touch(a, n, false, false); } \
  void __tsan_write##n(void* a) { simt::touch(a, n, true, false); } \
  void __tsan_unaligned_read##n(void* a) { simt::touch(a, n, false, false); } \
  void __tsan_unaligned_write##n(void* a) { simt::touch(a, n, true, false); } \
  void __tsan_volatile_read##n(void* a) { simt::touch(a, n, false, false); } \
  void __tsan_volatile_write##n(void* a) { simt::touch(a, n, true, false); }
ACCESS(1) ACCESS(2) ACCESS(4) ACCESS(8) ACCESS(16)
void __tsan_read_range(void* a, unsigned long n) { simt::touch(a, n, false, false); }
void __tsan_write_range(void* a, unsigned long n) { simt::touch(a, n, true, false); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
#endif

void register_kernels();

static void get(void* to, size_t n) {
  auto p = static_cast<unsigned char*>(to);
  while (n) { size_t k = fread(p, 1, n, stdin); if (!k) _exit(0); p += k; n -= k; }
}
struct Header { uint32_t grid[3], block[3], dynamic, order, seed, arguments, name; };
struct Description { char kind; char pad[3]; uint32_t size; uint64_t bytes; uint32_t offset, back; };

int main() {
  register_kernels();
  while (true) {
    Header h; get(&h, sizeof h);
    std::string name(h.name, ' '); get(name.data(), h.name);
    std::vector<Description> what(h.arguments);
    std::vector<simt::Argument> arguments(h.arguments);
    std::vector<unsigned char*> memory(h.arguments);
    for (unsigned i = 0; i < h.arguments; i++) {
      get(&what[i], sizeof(Description));
      memory[i] = static_cast<unsigned char*>(malloc(what[i].offset + what[i].bytes));  // exactly, so that one past the end is seen
      arguments[i] = {what[i].kind, what[i].size, memory[i] + what[i].offset};
      get(arguments[i].data, what[i].bytes);
    }
    auto found = simt::kernels().find(name);
    if (found == simt::kernels().end()) { fprintf(stderr, "simt: no kernel %s\n", name.c_str()); _exit(64); }
    gridDim = {h.grid[0], h.grid[1], h.grid[2]}; blockDim = {h.block[0], h.block[1], h.block[2]};
    dynamic_memory.assign(h.dynamic, 0xC5); dynamic_memory.shrink_to_fit();
    order = h.order; seed = h.seed;
    found->second(arguments.data(), h.arguments);
    fputc('k', stdout);
    for (unsigned i = 0; i < h.arguments; i++) {
      if (what[i].back) fwrite(arguments[i].data, 1, what[i].bytes, stdout);
      free(memory[i]);
    }
    fflush(stdout);
  }
}
