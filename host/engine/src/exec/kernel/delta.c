/* The delta rule by hand, for tests: plain loops with the buffers of a generated kernel. REAL, DV, DK, BLOCKS are defined in front. */
#include <stdint.h>
#include <string.h>
typedef REAL real;
struct fwp_scan {
    int64_t steps, sequences, interval, early;
    const void *const *in;
    const int64_t *in_step, *in_sequence;
    const real *const *start, *const *fresh;
    const uint8_t *reset, *write;
    const int64_t *index;
    real *const *kept, *const *end, *const *checkpoint;
    const real *const *kept_gradient, *const *end_gradient;
    real *const *in_gradient, *const *start_gradient, *const *fresh_gradient;
    real *saved;
    int64_t together, time;
};
#define ROWS (DV / BLOCKS)
enum { Q, K, V, BETA };
struct at { const real *q, *k, *v, *beta; };
static struct at at(const struct fwp_scan *s, int64_t t, int64_t n) {
    const real *p[4];
    for (int i = 0; i < 4; i++) p[i] = (const real *)s->in[i] + t * s->in_step[i] + n * s->in_sequence[i];
    return (struct at){p[Q], p[K], p[V], p[BETA]};
}
/* w: rows of the block before the step; out: after it; e: errors */
static void step(const struct at *x, int r0, const real *w, real *out, real *e) {
    for (int r = 0; r < ROWS; r++) {
        real read = 0;
        for (int j = 0; j < DK; j++) read += w[r * DK + j] * x->k[j];
        e[r] = x->v[r0 + r] - read;
        for (int j = 0; j < DK; j++) out[r * DK + j] = w[r * DK + j] + *x->beta * e[r] * x->k[j];
    }
}
static void forward(const struct fwp_scan *s, int64_t n, int64_t block, void *memory) {
    int r0 = (int)block * ROWS;
    real *w = memory, *next = w + ROWS * DK, *e = next + ROWS * DK;
    memcpy(w, s->start[0] + n * DV * DK + r0 * DK, sizeof(real) * ROWS * DK);
    for (int64_t t = 0; t < s->steps; t++) {
        if (s->checkpoint && t % s->interval == 0)
            memcpy(s->checkpoint[0] + ((t / s->interval) * s->sequences + n) * DV * DK + r0 * DK, w, sizeof(real) * ROWS * DK);
        if (s->reset && s->reset[t * s->sequences + n])
            memcpy(w, s->fresh[0] + n * DV * DK + r0 * DK, sizeof(real) * ROWS * DK);
        struct at x = at(s, t, n);
        step(&x, r0, w, next, e);
        real *y = s->kept[0] + (t * s->sequences + n) * DV + r0;
        for (int r = 0; r < ROWS; r++) {
            y[r] = 0;
            for (int j = 0; j < DK; j++) y[r] += next[r * DK + j] * x.q[j];
        }
        if (!s->write || s->write[t * s->sequences + n]) memcpy(w, next, sizeof(real) * ROWS * DK);
    }
    memcpy(s->end[0] + n * DV * DK + r0 * DK, w, sizeof(real) * ROWS * DK);
}
static void backward(const struct fwp_scan *s, int64_t n, int64_t block, void *memory, void *slots) {
    int64_t N = s->sequences, T = s->steps, part = block / s->together;
    int adds = block % s->together != 0;
    int r0 = (int)block * ROWS;
    const size_t size = sizeof(real) * ROWS * DK;
    /* g: gradient of the state after the step; h: of the step's new state; e; de; and the states before every step */
    real *g = memory, *h = g + ROWS * DK, *next = h + ROWS * DK, *e = next + ROWS * DK, *states = slots;
    real *fresh = s->fresh_gradient ? s->fresh_gradient[0] + n * DV * DK + r0 * DK : 0;
    if (fresh) memset(fresh, 0, size);
    if (s->end_gradient[0]) memcpy(g, s->end_gradient[0] + n * DV * DK + r0 * DK, size);
    else memset(g, 0, size);
    int64_t segments = (T + s->interval - 1) / s->interval;
    for (int64_t c = segments - 1; c >= 0; c--) {
        int64_t t0 = c * s->interval, t1 = t0 + s->interval < T ? t0 + s->interval : T;
        memcpy(states, s->checkpoint[0] + (c * N + n) * DV * DK + r0 * DK, size);
        for (int64_t t = t0; t < t1; t++) {
            real *w = states + (t - t0) * ROWS * DK;
            if (s->reset && s->reset[t * N + n]) memcpy(w, s->fresh[0] + n * DV * DK + r0 * DK, size);
            if (t + 1 == t1) break;
            struct at x = at(s, t, n);
            step(&x, r0, w, w + ROWS * DK, e);
            if (s->write && !s->write[t * N + n]) memcpy(w + ROWS * DK, w, size);
        }
        for (int64_t t = t1 - 1; t >= t0; t--) {
            const real *w = states + (t - t0) * ROWS * DK;
            struct at x = at(s, t, n);
            step(&x, r0, w, next, e);
            int written = !s->write || s->write[t * N + n];
            const real *gy = s->kept_gradient[0] ? s->kept_gradient[0] + (t * N + n) * DV + r0 : 0;
            real *gq = s->in_gradient[Q] ? s->in_gradient[Q] + ((part * T + t) * N + n) * DK : 0;
            real *gk = s->in_gradient[K] ? s->in_gradient[K] + ((part * T + t) * N + n) * DK : 0;
            real *gv = s->in_gradient[V] ? s->in_gradient[V] + (t * N + n) * DV + r0 : 0;
            real *gb = s->in_gradient[BETA] ? s->in_gradient[BETA] + (part * T + t) * N + n : 0;
            real beta = 0;
            for (int j = 0; j < DK; j++) {
                real sum = 0;
                for (int r = 0; r < ROWS; r++) {
                    h[r * DK + j] = (written ? g[r * DK + j] : 0) + (gy ? gy[r] * x.q[j] : 0);
                    if (gy) sum += gy[r] * next[r * DK + j];
                }
                if (gq) gq[j] = (adds ? gq[j] : 0) + sum;
            }
            real *de = e + ROWS;
            for (int r = 0; r < ROWS; r++) {
                real hk = 0;
                for (int j = 0; j < DK; j++) hk += h[r * DK + j] * x.k[j];
                beta += hk * e[r];
                de[r] = *x.beta * hk;
                if (gv) gv[r] = de[r];
            }
            if (gb) *gb = (adds ? *gb : 0) + beta;
            for (int j = 0; gk && j < DK; j++) {
                real sum = 0;
                for (int r = 0; r < ROWS; r++) sum += *x.beta * e[r] * h[r * DK + j] - de[r] * w[r * DK + j];
                gk[j] = (adds ? gk[j] : 0) + sum;
            }
            for (int i = 0; i < ROWS * DK; i++) {
                real own = h[i] - de[i / DK] * x.k[i % DK];
                g[i] = written ? own : own + g[i];
            }
            if (s->reset && s->reset[t * N + n]) {
                for (int i = 0; i < ROWS * DK; i++) fresh[i] += g[i];
                memset(g, 0, size);
            }
        }
    }
    memcpy(s->start_gradient[0] + n * DV * DK + r0 * DK, g, size);
}
/* All of a unit with its first segments. */
void fwp_forward(const struct fwp_scan *s, int64_t unit, int64_t from, int64_t to, void *memory, void *slots) {
    (void)to, (void)slots;
    for (int64_t b = unit * s->together; !from && b < (unit + 1) * s->together; b++) forward(s, b / BLOCKS, b % BLOCKS, memory);
}
void fwp_backward(const struct fwp_scan *s, int64_t unit, int64_t from, int64_t to, void *memory, void *slots) {
    (void)to;
    for (int64_t b = unit * s->together; !from && b < (unit + 1) * s->together; b++) backward(s, b / BLOCKS, b % BLOCKS, memory, slots);
}
