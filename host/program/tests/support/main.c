#include <stdio.h>
#include <stdlib.h>

static int64_t take_int(void)
{
    int64_t v;
    if (fread(&v, 8, 1, stdin) != 1) exit(3);
    return v;
}

static void *take(int64_t n, int64_t size)
{
    void *p = malloc(n * size + 1);
    if (n && fread(p, size, n, stdin) != (size_t)n) exit(4);
    return p;
}

static void put(const real *v, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        const double x = (double)v[i];
        fwrite(&x, 8, 1, stdout);
    }
}

static void *room(int64_t bytes)
{
    /* Uninitialised memory is as bad as it can be. */
    unsigned char *p = aligned_alloc(64, (bytes + 127) / 64 * 64);
    for (int64_t i = 0; i < bytes; i++) p[i] = 0xff;
    return p;
}

/* Units take turns, two segments each; every call has slots of its own. */
static void walk(const struct fwp_scan *s, int64_t units,
                 void (*some)(const struct fwp_scan *, int64_t, int64_t, int64_t, void *, void *), int64_t memory, int64_t slots)
{
    void **memories = malloc(units * sizeof *memories);
    for (int64_t u = 0; u < units; u++) memories[u] = room(memory);
    const int64_t segments = fwp_segments(s);
    for (int64_t from = 0; from < segments; from += 2) {
        const int64_t to = from + 2 < segments ? from + 2 : segments;
        for (int64_t u = 0; u < units; u++) {
            void *own = room(slots);
            some(s, u, from, to, memories[u], own);
            free(own);
        }
    }
    for (int64_t u = 0; u < units; u++) free(memories[u]);
    free(memories);
}

int main(void)
{
    const int64_t steps = take_int(), sequences = take_int(), interval = take_int(), early = take_int();
    const int64_t n_in = take_int(), n_states = take_int(), n_kept = take_int(), blocks = take_int();
    const int64_t together = take_int(), saved = take_int();
    const int64_t forward = take_int(), backward = take_int(), slots = take_int();
    const void *in[64];
    int64_t in_step[64], in_sequence[64], in_n[64];
    real *in_gradient[64];
    for (int64_t i = 0; i < n_in; i++) {
        in_step[i] = take_int();
        in_sequence[i] = take_int();
        const int64_t kind = take_int(), n = take_int();
        in[i] = take(n, kind == 0 ? (int64_t)sizeof(real) : kind == 1 ? 8 : 1);
        in_n[i] = take_int();
        in_gradient[i] = in_n[i] ? room(in_n[i] * sizeof(real)) : 0;
    }
    const real *start[64], *fresh[64], *end_gradient[64];
    real *end[64], *checkpoint[64], *start_gradient[64], *fresh_gradient[64];
    int64_t state_n[64];
    for (int64_t i = 0; i < n_states; i++) {
        const int64_t n = state_n[i] = take_int();
        start[i] = take(n, sizeof(real));
        take_int();
        fresh[i] = take(n, sizeof(real));
        take_int();
        end_gradient[i] = take(n, sizeof(real));
        end[i] = room(n * sizeof(real));
        start_gradient[i] = room(n * sizeof(real));
        fresh_gradient[i] = room(n * sizeof(real));
        checkpoint[i] = room(((steps + early + interval - 1) / interval + 1) * n * sizeof(real));
    }
    const real *kept_gradient[64];
    real *kept[64];
    int64_t kept_n[64];
    for (int64_t i = 0; i < n_kept; i++) {
        kept_n[i] = take_int();
        kept_gradient[i] = take(kept_n[i], sizeof(real));
        kept[i] = room(kept_n[i] * sizeof(real));
    }
    struct fwp_scan s = {0};
    s.steps = steps, s.sequences = sequences, s.interval = interval, s.early = early;
    s.in = in, s.in_step = in_step, s.in_sequence = in_sequence;
    s.start = start;
    s.together = together, s.time = sequences, s.saved = room(saved * sizeof(real));
    int64_t n = take_int();
    const uint8_t *reset = take(n, 1);
    if (n) s.reset = reset, s.fresh = fresh, s.fresh_gradient = fresh_gradient;
    else for (int64_t i = 0; i < n_states; i++) for (int64_t j = 0; j < state_n[i]; j++) fresh_gradient[i][j] = 0;
    n = take_int();
    const uint8_t *write = take(n, 1);
    if (n) s.write = write;
    n = take_int();
    const int64_t *index = take(n, 8);
    if (n) s.index = index;
    s.kept = kept, s.end = end, s.checkpoint = checkpoint;
    walk(&s, sequences * blocks / together, fwp_forward, forward, 0);
    s.kept_gradient = kept_gradient, s.end_gradient = end_gradient, s.in_gradient = in_gradient;
    s.start_gradient = start_gradient;
    walk(&s, sequences * blocks / together, fwp_backward, backward, slots);
    for (int64_t i = 0; i < n_kept; i++) put(kept[i], kept_n[i]);
    for (int64_t i = 0; i < n_states; i++) put(end[i], state_n[i]);
    for (int64_t i = 0; i < n_states; i++) put(start_gradient[i], state_n[i]);
    for (int64_t i = 0; i < n_states; i++) put(fresh_gradient[i], state_n[i]);
    for (int64_t i = 0; i < n_in; i++) put(in_gradient[i], in_n[i]);
    return 0;
}
