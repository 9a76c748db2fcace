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
