/* The first and only process of a small Linux guest. It does what the guest of a few KiB does (pulse.c): on its serial
 * line it says `boot NUMBER` once, then one `.` per beat, 20 times a second; into sector 0 of its disk, which all hosts
 * share, it writes that number and the count, past every cache. Before each write it reads the sector: whatever is not
 * what it wrote last was written by somebody who runs at the same time, and it says `!` instead of `.`. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

/* What is needed to see the disk, each after what it needs itself. */
static const char *const modules[] = {"virtio_ring",           "virtio",     "virtio_pci_legacy_dev",
                                      "virtio_pci_modern_dev", "virtio_pci", "virtio_blk"};

struct sector {
  uint32_t boot, beat;
  uint8_t rest[504];
};
static struct sector mine __attribute__((aligned(4096))), found __attribute__((aligned(4096)));

static void say(int line, const char *text) {
  if (write(line, text, strlen(text)) < 0) {
    /* Nobody listens; there is nobody else to tell. */
  }
}

static int open_serial(void) {
  int line = open("/dev/ttyS0", O_WRONLY | O_NOCTTY);
  struct termios as;
  if (line >= 0 && tcgetattr(line, &as) == 0) {
    cfmakeraw(&as);
    tcsetattr(line, TCSANOW, &as);
  }
  return line;
}

static void load_modules(void) {
  for (size_t i = 0; i < sizeof modules / sizeof *modules; i++) {
    char path[64];
    snprintf(path, sizeof path, "/%s.ko", modules[i]);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    syscall(SYS_finit_module, file, "", 0);
    close(file);
  }
}

static uint32_t boot_number(void) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return (uint32_t)__builtin_ia32_rdtsc() ^ (uint32_t)now.tv_sec << 16 ^ (uint32_t)now.tv_nsec;
}

int main(void) {
  mkdir("/dev", 0755);
  mount("dev", "/dev", "devtmpfs", 0, "");
  load_modules();
  int line = open_serial();
  int disk = -1;
  mine.boot = boot_number();
  char text[32];
  snprintf(text, sizeof text, "boot %08x\n", mine.boot);
  say(line, text);
  struct timespec next;
  clock_gettime(CLOCK_MONOTONIC, &next);
  for (int first = 1;; first = 0) {
    const char *told = ".";
    if (disk < 0) disk = open("/dev/vda", O_RDWR | O_DIRECT | O_SYNC);
    if (pread(disk, &found, sizeof found, 0) != sizeof found) told = "?";
    else if (!first && (found.boot != mine.boot || found.beat != mine.beat)) told = "!";
    mine.beat++;
    if (pwrite(disk, &mine, sizeof mine, 0) != sizeof mine) told = "?";
    say(line, told);
    next.tv_nsec += 50000000;
    if (next.tv_nsec >= 1000000000) {
      next.tv_nsec -= 1000000000;
      next.tv_sec++;
    }
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL) != 0) {
      /* Interrupted. */
    }
  }
}
