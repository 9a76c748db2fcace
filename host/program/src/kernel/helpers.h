/* Integers: sums and products wrap around, a division by zero gives zero. */
#define FWP_INT static inline __attribute__((unused)) int64_t
FWP_INT fwp_int_add(int64_t a, int64_t b) { return (int64_t)((uint64_t)a + (uint64_t)b); }
FWP_INT fwp_int_sub(int64_t a, int64_t b) { return (int64_t)((uint64_t)a - (uint64_t)b); }
FWP_INT fwp_int_mul(int64_t a, int64_t b) { return (int64_t)((uint64_t)a * (uint64_t)b); }
FWP_INT fwp_int_max(int64_t a, int64_t b) { return a > b ? a : b; }
FWP_INT fwp_int_min(int64_t a, int64_t b) { return a < b ? a : b; }
FWP_INT fwp_int_rem(int64_t a, int64_t b)
{
    if (b == 0 || b == -1) return 0;
    const int64_t r = a % b;
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
FWP_INT fwp_int_quotient(int64_t a, int64_t b) { return a / b; }
FWP_INT fwp_int_and(int64_t a, int64_t b) { return a & b; }
FWP_INT fwp_int_or(int64_t a, int64_t b) { return a | b; }
FWP_INT fwp_int_xor(int64_t a, int64_t b) { return a ^ b; }
FWP_INT fwp_int_left(int64_t a, int64_t b) { return b < 0 || b > 63 ? 0 : (int64_t)((uint64_t)a << b); }
FWP_INT fwp_int_right(int64_t a, int64_t b) { return b < 0 || b > 63 ? (a < 0 ? -1 : 0) : a >> b; }
FWP_INT fwp_int_trailing(int64_t a) { return a == 0 ? 63 : __builtin_ctzll((uint64_t)a); }

/* Conjugate gradients for A x = b. `work` holds b and takes x, r, p and A p, n elements each. */
static __attribute__((unused, noinline)) void fwp_solve(int n, const real *a, real *work, int64_t iterations, real tolerance)
{
    const real *b = work;
    real *x = work + n, *r = x + n, *p = r + n, *ap = p + n;
    real rr = 0;
    for (int i = 0; i < n; i++) {
        x[i] = 0;
        r[i] = p[i] = b[i];
        rr += b[i] * b[i];
    }
    const real enough = tolerance * tolerance * rr;
    for (int64_t k = 0; k < iterations; k++) {
        if (rr <= enough || rr == 0) break;
        real along = 0;
        for (int i = 0; i < n; i++) {
            real sum = 0;
            for (int j = 0; j < n; j++) sum += a[(int64_t)i * n + j] * p[j];
            ap[i] = sum;
            along += p[i] * sum;
        }
        if (along == 0) break;
        const real step = rr / along;
        real next = 0;
        for (int i = 0; i < n; i++) {
            x[i] += step * p[i];
            r[i] -= step * ap[i];
            next += r[i] * r[i];
        }
        const real keep = next / rr;
        for (int i = 0; i < n; i++) p[i] = r[i] + keep * p[i];
        rr = next;
    }
}

/* Elements at these places. */
static inline __attribute__((unused)) vf fwp_gather(const real *p, const fwp_lane *at)
{
    real y[FWP_LANES] __attribute__((aligned(64)));
    for (int l = 0; l < FWP_LANES; l++) y[l] = p[at[l]];
    return *(const vf *)y;
}

static inline __attribute__((unused)) void fwp_foresee(const void *p, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char *)p + i);
}

static inline __attribute__((unused)) void fwp_foresee_write(const void *p, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char *)p + i, 1);
}

/* Sum of the magnitudes of a state, or of its distances from another one; rows lie in blocks, of which the last may be padded. */
static inline __attribute__((unused, always_inline)) real fwp_magnitude(const real *a, const real *from, int blocks, int rest, int block, int rows)
{
    real sum = 0;
    for (int b = 0; b < blocks; b++) {
        const int here = rows - b * block < block ? rows - b * block : block;
        for (int i = 0; i < rest; i++)
            for (int j = 0; j < here; j++) {
                const int64_t at = ((int64_t)b * rest + i) * block + j;
                const real x = from ? a[at] - from[at] : a[at];
                sum += x < 0 ? -x : x;
            }
    }
    return sum;
}

/* Zero is no size to compare with. */
static const real fwp_no_least = (real)__builtin_inf();
static inline __attribute__((unused)) real fwp_least(real least, real size) { return size > 0 && size < least ? size : least; }

/* Whether a state that has been computed back is further from what it was than roundings put it, which even out as n steps add
   theirs: each has that of the largest state from there on, and must be small beside the least one. Of a state that is not finite there is
   nothing to lose. */
static inline __attribute__((unused)) int fwp_lost(real apart, real least, real was, int64_t n)
{
    const real rounding = FWP_DOUBLE ? 2.220446049250313e-16 : 1.1920929e-7f;
    const real few = rounding * (real)(FWP_DOUBLE ? __builtin_sqrt(n) : __builtin_sqrtf(n));
    return was < (real)__builtin_inf() && !(apart <= few * fwp_least(least, was));
}

struct fwp_scan {
    int64_t steps, sequences;
    int64_t interval, early;
    const void *const *in;
    const int64_t *in_step;
    const int64_t *in_sequence;
    const real *const *start;
    const real *const *fresh;
    const uint8_t *reset, *write;
    const int64_t *index;
    real *const *kept;
    real *const *end;
    real *const *checkpoint;
    const real *const *kept_gradient;
    const real *const *end_gradient;
    real *const *in_gradient;
    real *const *start_gradient;
    real *const *fresh_gradient;
    real *saved;
    int64_t together;
    int64_t time;
};

/* Whether a sequence is reset within these steps. */
static inline __attribute__((unused)) int fwp_resets(const struct fwp_scan *s, int64_t sequence, int64_t begin, int64_t end)
{
    int any = 0;
    for (int64_t t = begin; s->reset && t < end; t++) any |= s->reset[t * s->time + sequence];
    return any;
}

/* Segments: the first has interval - early steps, all others but the last have interval. */
static inline __attribute__((unused)) int64_t fwp_segment(const struct fwp_scan *s, int64_t begin)
{
    return (begin + s->early) / s->interval;
}

static inline __attribute__((unused)) int64_t fwp_segments(const struct fwp_scan *s)
{
    return (s->steps + s->early + s->interval - 1) / s->interval;
}

static inline __attribute__((unused)) int64_t fwp_begin(const struct fwp_scan *s, int64_t segment)
{
    const int64_t begin = segment ? segment * s->interval - s->early : 0;
    return begin < s->steps ? begin : s->steps;
}
