// An allocator for fuzzing, put before libc's with LD_PRELOAD. While it is armed, what is allocated aligned (tensors by
// torch, scratch memory by aoq) ends at a page that nothing may touch, as far as its alignment allows; the bytes between
// are canaries, as are those before it. Memory is handed out full of 0xff: NaN in every dtype of floats.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { kSlots = 512, kPage = 4096, kSlotBytes = 256 * kPage, kCanary = 0xa5 };

static char* arena;  // kSlots times kSlotBytes of memory and a page without access; one more page before all
static struct { size_t bytes, alignment; } taken[kSlots];
static int next_slot;
static volatile int armed;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static char* end_of(int slot) { return arena + kPage + (int64_t)slot * (kSlotBytes + kPage) + kSlotBytes; }

static void die(const char* what) {
  fprintf(stderr, "guard: %s\n", what);
  fflush(stderr);
  abort();
}

// How many bytes before an allocation are canaries.
static size_t margin(size_t bytes) { return kSlotBytes - bytes < 512 ? 0 : 256; }

static void* allocate(size_t alignment, size_t bytes) {
  if (!armed || bytes == 0 || bytes + alignment > kSlotBytes) return NULL;
  void* memory = NULL;
  pthread_mutex_lock(&mutex);
  for (int tried = 0; tried < kSlots && !memory; ++tried) {
    const int slot = next_slot++ % kSlots;
    if (taken[slot].bytes) continue;
    taken[slot].bytes = bytes;
    taken[slot].alignment = alignment;
    char* const end = end_of(slot);
    char* const at = (char*)((uintptr_t)(end - bytes) / alignment * alignment);
    memset(at - margin(bytes + alignment), kCanary, margin(bytes + alignment));
    memset(at, 0xff, bytes);
    memset(at + bytes, kCanary, (size_t)(end - at) - bytes);
    memory = at;
  }
  pthread_mutex_unlock(&mutex);
  return memory;
}

// Whether `memory` is of the arena; then it is given back.
static int release(void* memory) {
  char* const at = memory;
  if (!arena || at < arena || at >= end_of(kSlots - 1)) return 0;
  const int slot = (int)((at - arena - kPage) / (kSlotBytes + kPage));
  pthread_mutex_lock(&mutex);
  const size_t bytes = taken[slot].bytes, alignment = taken[slot].alignment;
  char* const end = end_of(slot);
  if (!bytes || at != (char*)((uintptr_t)(end - bytes) / alignment * alignment)) die("freed what was not allocated");
  for (char* c = at - margin(bytes + alignment); c < at; ++c)
    if (*c != (char)kCanary) die("something wrote before its memory");
  for (char* c = at + bytes; c < end; ++c)
    if (*c != (char)kCanary) die("something wrote after its memory");
  memset(at, 0xdd, bytes);
  taken[slot].bytes = 0;
  pthread_mutex_unlock(&mutex);
  return 1;
}

void guard_arm(int on) {
  if (on && !arena) {
    const size_t bytes = kPage + (size_t)kSlots * (kSlotBytes + kPage);
    char* const memory = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) die("no memory for the arena");
    arena = memory;
    for (int slot = 0; slot < kSlots; ++slot)
      if (mprotect(end_of(slot) - kSlotBytes, kSlotBytes, PROT_READ | PROT_WRITE) != 0) die("mprotect failed");
  }
  armed = on;
}

int posix_memalign(void** memory, size_t alignment, size_t bytes) {
  static int (*next)(void**, size_t, size_t);
  if ((*memory = allocate(alignment, bytes))) return 0;
  if (!next) next = (int (*)(void**, size_t, size_t))dlsym(RTLD_NEXT, "posix_memalign");
  return next(memory, alignment, bytes);
}

void* aligned_alloc(size_t alignment, size_t bytes) {
  static void* (*next)(size_t, size_t);
  void* const memory = allocate(alignment, bytes);
  if (memory) return memory;
  if (!next) next = (void* (*)(size_t, size_t))dlsym(RTLD_NEXT, "aligned_alloc");
  return next(alignment, bytes);
}

void free(void* memory) {
  static void (*next)(void*);
  if (!memory || release(memory)) return;
  if (!next) next = (void (*)(void*))dlsym(RTLD_NEXT, "free");
  next(memory);
}
