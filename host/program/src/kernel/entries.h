
/* Results below the smallest normal number are zero while a unit runs: arithmetic with such numbers takes a hundred times as
   long, and states meet them all the time (decays over many steps, products of what is left of keys that are nearly
   orthogonal). Operands keep their value on x86, so that the logarithm of a subnormal input is what it is. The mode of the
   calling thread is what it was when the unit ends. The walks are not inlined: no arithmetic moves across the change. */
#if defined(__x86_64__)
static unsigned fwp_flush(void)
{
    const unsigned mode = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(mode | 0x8000);
    return mode;
}
static void fwp_restore(unsigned mode) { __builtin_ia32_ldmxcsr(mode); }
#elif defined(__aarch64__)
static uint64_t fwp_flush(void)
{
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    __asm__ volatile("msr fpcr, %0" : : "r"(mode | (UINT64_C(1) << 24)) : "memory");
    return mode;
}
static void fwp_restore(uint64_t mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode) : "memory"); }
#else
static int fwp_flush(void) { return 0; }
static void fwp_restore(int mode) { (void)mode; }
#endif

void fwp_forward(const struct fwp_scan *s, int64_t unit, int64_t from, int64_t to, void *memory, void *slots)
{
    const __auto_type mode = fwp_flush();
    fwp_forward_unit(s, unit, from, to, memory, slots);
    fwp_restore(mode);
}

void fwp_backward(const struct fwp_scan *s, int64_t unit, int64_t from, int64_t to, void *memory, void *slots)
{
    const __auto_type mode = fwp_flush();
    fwp_backward_unit(s, unit, from, to, memory, slots);
    fwp_restore(mode);
}
