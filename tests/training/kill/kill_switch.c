/* Interposed with LD_PRELOAD: counts the system calls that change files under a folder, and kills the
   process at the n-th of them. A write is cut off after half of its bytes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static char folder[4096];
static long kill_at = -1;
static long count = 0;

/* Called from Python: at = 0 only counts. */
void watch(const char* path, long at) {
  snprintf(folder, sizeof folder, "%s", path);
  kill_at = at;
  count = 0;
}

long counted(void) { return count; }

static int watched(const char* path) {
  return folder[0] && path && strncmp(path, folder, strlen(folder)) == 0;
}

static int watched_descriptor(int descriptor) {
  char link[64], path[4096];
  if (!folder[0]) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length <= 0) return 0;
  path[length] = 0;
  return watched(path);
}

static int due(void) { return kill_at >= 0 && ++count == kill_at; }

static void die(void) { kill(getpid(), SIGKILL); }

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int descriptor, const void* bytes, size_t size) {
  if (watched_descriptor(descriptor) && due()) {
    REAL(write)(descriptor, bytes, size / 2);
    die();
  }
  return REAL(write)(descriptor, bytes, size);
}

int fsync(int descriptor) {
  if (watched_descriptor(descriptor) && due()) die();
  return REAL(fsync)(descriptor);
}

int rename(const char* from, const char* to) {
  if (watched(to) && due()) die();
  return REAL(rename)(from, to);
}

int unlink(const char* path) {
  if (watched(path) && due()) die();
  return REAL(unlink)(path);
}

int mkdir(const char* path, mode_t mode) {
  if (watched(path) && due()) die();
  return REAL(mkdir)(path, mode);
}

int chmod(const char* path, mode_t mode) {
  if (watched(path) && due()) die();
  return REAL(chmod)(path, mode);
}

static int creates(int flags) { return (flags & (O_CREAT | O_WRONLY | O_RDWR)) != 0; }

#define OPEN(name)                                      \
  int name(const char* path, int flags, ...) {          \
    va_list rest;                                       \
    va_start(rest, flags);                              \
    mode_t mode = va_arg(rest, mode_t);                 \
    va_end(rest);                                       \
    if (watched(path) && creates(flags) && due()) die(); \
    return REAL(name)(path, flags, mode);               \
  }
OPEN(open)
OPEN(open64)
