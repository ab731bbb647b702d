/* A guest of a few KiB. It boots by multiboot in some hundredths of a second, and then it beats 20 times a second:
 * on its serial line it says `boot NUMBER` once, then one `.` per beat; into sector 0 of its disk, which all hosts
 * share, it writes that number and the count. Before each write it reads the sector: whatever is not what it wrote
 * last was written by somebody who runs at the same time, and it says `!` instead of `.`. */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

__attribute__((section(".multiboot"), used)) static const u32 header[3] = {0x1BADB002, 0, -0x1BADB002u};

static inline void outb(u16 port, u8 value) { __asm__ volatile("outb %0,%1" ::"a"(value), "Nd"(port)); }
static inline u8 inb(u16 port) {
  u8 value;
  __asm__ volatile("inb %1,%0" : "=a"(value) : "Nd"(port));
  return value;
}
static inline void outsw(u16 port, const void *from, u32 words) {
  __asm__ volatile("cld; rep outsw" : "+S"(from), "+c"(words) : "d"(port) : "memory");
}
static inline void insw(u16 port, void *to, u32 words) {
  __asm__ volatile("cld; rep insw" : "+D"(to), "+c"(words) : "d"(port) : "memory");
}

/* The serial line. */
static void put(char c) {
  while (!(inb(0x3fd) & 0x20))
    ;
  outb(0x3f8, c);
}
static void say(const char *text) {
  while (*text) put(*text++);
}
static void hex(u32 value) {
  for (int bit = 28; bit >= 0; bit -= 4) put("0123456789abcdef"[value >> bit & 15]);
}

/* The disk: the first one of the first IDE controller, by words. */
static int waits_for(u8 wanted) {
  for (u32 i = 0; i < 50000000; i++) {
    u8 status = inb(0x1f7);
    if (status == 0xff || status == 0 || status & 1) return 0;
    if (!(status & 0x80) && (status & wanted) == wanted) return 1;
  }
  return 0;
}
static int command(u8 what) {
  outb(0x1f6, 0xe0);
  if (!waits_for(0x40)) return 0;
  outb(0x1f2, 1);
  outb(0x1f3, 0);
  outb(0x1f4, 0);
  outb(0x1f5, 0);
  outb(0x1f7, what);
  return waits_for(0x08);
}

struct sector {
  u32 boot, beat;
  u8 rest[504];
};
static struct sector mine, found;

static int read_sector(void) {
  if (!command(0x20)) return 0;
  insw(0x1f0, &found, 256);
  return 1;
}
static int write_sector(void) {
  if (!command(0x30)) return 0;
  outsw(0x1f0, &mine, 256);
  return waits_for(0x40);
}

/* Interrupts: only the timer's. */
struct gate {
  u16 low, selector;
  u8 zero, type;
  u16 high;
} __attribute__((packed));
static struct gate gates[48] __attribute__((aligned(8)));
static u64 segments[3] = {0, 0x00cf9a000000ffffULL, 0x00cf92000000ffffULL};
__attribute__((naked)) static void on_timer(void) {
  __asm__ volatile("push %eax; movb $0x20,%al; outb %al,$0x20; pop %eax; iretl");
}
__attribute__((naked)) static void on_other(void) { __asm__ volatile("iretl"); }

static void timer_at_20_hertz(void) {
  struct {
    u16 size;
    u32 address;
  } __attribute__((packed)) gdt = {sizeof segments - 1, (u32)segments}, idt = {sizeof gates - 1, (u32)gates};
  __asm__ volatile("lgdt %0; ljmp $8,$1f; 1: movw $16,%%ax; movw %%ax,%%ds; movw %%ax,%%es; movw %%ax,%%ss" ::"m"(gdt)
                   : "eax", "memory");
  for (int i = 0; i < 48; i++) {
    u32 handler = (u32)(i == 32 ? on_timer : on_other);
    gates[i] = (struct gate){handler, 8, 0, 0x8e, handler >> 16};
  }
  __asm__ volatile("lidt %0" ::"m"(idt));
  static const u8 controllers[][2] = {{0x20, 0x11}, {0xa0, 0x11}, {0x21, 32}, {0xa1, 40}, {0x21, 4},
                                      {0xa1, 2},    {0x21, 1},    {0xa1, 1},  {0x21, 0xfe}, {0xa1, 0xff}};
  for (u32 i = 0; i < sizeof controllers / 2; i++) outb(controllers[i][0], controllers[i][1]);
  u16 divisor = 59659;
  outb(0x43, 0x34);
  outb(0x40, (u8)divisor);
  outb(0x40, (u8)(divisor >> 8));
}

static u8 stack[8192] __attribute__((aligned(16)));

__attribute__((used)) static void run(void) {
  static const u16 line[][2] = {{0x3f9, 0}, {0x3fb, 0x80}, {0x3f8, 1}, {0x3f9, 0}, {0x3fb, 3}, {0x3fa, 0}, {0x3fc, 3}};
  for (u32 i = 0; i < sizeof line / 4; i++) outb(line[i][0], (u8)line[i][1]);
  u32 low, high;
  __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
  outb(0x70, 0); /* seconds of the wall clock: two boots do not get one number */
  mine.boot = low ^ (u32)inb(0x71) << 24 ^ high;
  say("boot ");
  hex(mine.boot);
  put('\n');
  timer_at_20_hertz();
  __asm__ volatile("sti");
  int first = 1;
  for (;;) {
    char told = '.';
    if (!read_sector()) told = '?';
    else if (!first && (found.boot != mine.boot || found.beat != mine.beat)) told = '!';
    mine.beat++;
    if (!write_sector()) told = '?';
    first = 0;
    put(told);
    __asm__ volatile("hlt");
  }
}

__attribute__((naked, used, section(".text.start"))) void _start(void) {
  __asm__ volatile("movl %0,%%esp; call run; 1: hlt; jmp 1b" ::"i"(stack + sizeof stack));
}
