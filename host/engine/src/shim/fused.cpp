// Operations that libtorch only has in pieces, each in one pass over its numbers and one back:
// the short causal convolution, normalisation over the last axis, and a gated activation.
//
// Backward passes compute again what lies between instead of keeping it. Work is cut into units by
// the shapes alone and every sum is made in the order of its units, so results have the same bits
// for any number of threads. Loops are plain C++ that the compiler turns into vectors; each is
// compiled for several instruction sets, of which the loader takes the best.
//
// Layouts: the last axis of every tensor is dense in memory, the others may lie in any order.
// What does not is copied. Entry points follow the conventions of shim.cpp.

#include "lanes.h"

#include <algorithm>
#include <utility>

using at::Tensor;

namespace {

// ---- causal convolution ----

constexpr int kWidth = 16;     // most taps
constexpr int kChannels = 64;  // of a unit

// One unit is a row of the batch and some of its channels. Sizes are in elements.
template <typename T>
struct Convolution {
  int64_t time, channels, width;
  const T* x;  // [batch, time, channels]
  int64_t x_batch, x_time;
  const T* kernel;  // [channels, width]
  const T* ring;    // [batch, width - 1, channels], what came before; or null
  const uint8_t* reset;  // [batch, time]; or null
  bool silu;
  T* y;  // as x, with its own strides
  int64_t y_batch, y_time;
  // Of the backward pass only.
  const T* g;  // as y
  int64_t g_batch, g_time;
  T* dx;  // as x, with its own strides
  int64_t dx_batch, dx_time;
  T* dkernel;  // [batch, channels, width], a part for every row of the batch
  T* dring;    // as ring; or null

  int64_t blocks() const { return (channels + kChannels - 1) / kChannels; }
};

// The sum of a channel over the taps. Written as folds over J, not as loops: compilers take those apart only after they have
// looked for vectors.
template <typename T, int TAPS, size_t... J>
FWP_PART T tapped(const T* taps, const T* const (&rows)[TAPS], int64_t c, std::index_sequence<J...>) {
  T sum = 0;
  ((sum += taps[J * kChannels + c] * rows[J][c]), ...);
  return sum;
}

// The gradient of that sum to taps and rows; that of the last row, this step's, begins here.
template <typename T, int TAPS, size_t... J>
FWP_PART void tapped_back(T slope, const T* taps, const T* const (&rows)[TAPS], T* dtaps, T* const (&drows)[TAPS],
                          int64_t c, std::index_sequence<J...>) {
  ((dtaps[J * kChannels + c] += slope * rows[J][c]), ...);
  ((drows[J][c] = taps[J * kChannels + c] * slope + (J == TAPS - 1 ? T(0) : drows[J][c])), ...);
}

// TAPS is `width` or more: what there is too much of are taps of zero that see nothing. So the compiler knows how many there
// are, and the sum of a channel stays in a register.
template <typename T, int TAPS, bool BACKWARD>
FWP_PART void convolution(const Convolution<T>& o, int64_t unit) {
  const int64_t b = unit / o.blocks(), first = unit % o.blocks() * kChannels;
  const int64_t n = std::min<int64_t>(kChannels, o.channels - first);
  const int64_t before = o.width - 1;
  constexpr std::make_index_sequence<TAPS> each;
  T taps[TAPS * kChannels] = {}, dtaps[TAPS * kChannels] = {};
  for (int64_t c = 0; c < n; ++c) {
    for (int64_t j = 0; j < o.width; ++j) taps[(TAPS - o.width + j) * kChannels + c] = o.kernel[(first + c) * o.width + j];
  }
  if (BACKWARD && o.dring != nullptr) {
    for (int64_t r = 0; r < before; ++r) {
      std::memset(o.dring + (b * before + r) * o.channels + first, 0, n * sizeof(T));
    }
  }
  // Read where nothing is seen: a NaN in a tap shows there as elsewhere. Gradients of it go nowhere.
  const T zeros[kChannels] = {};
  T nowhere[kChannels] = {};
  // Steps before this one that belong to its sequence, as far as the taps reach.
  int64_t seen = o.ring != nullptr ? before : 0;
  for (int64_t t = 0; t < o.time; ++t, seen = std::min(seen + 1, before)) {
    if (o.reset != nullptr && o.reset[b * o.time + t]) seen = 0;
    const T* rows[TAPS];
    T* drows[TAPS];
    for (int64_t j = 0; j < TAPS; ++j) {
      const int64_t back = TAPS - 1 - j;
      if (back > seen) {
        rows[j] = zeros;
        drows[j] = nowhere;
      } else if (back <= t) {
        rows[j] = o.x + b * o.x_batch + (t - back) * o.x_time + first;
        if (BACKWARD) drows[j] = o.dx + b * o.dx_batch + (t - back) * o.dx_time + first;
      } else {
        const int64_t at = (b * before + before + t - back) * o.channels + first;
        rows[j] = o.ring + at;
        drows[j] = o.dring == nullptr ? nowhere : o.dring + at;
      }
    }
    T sum[kChannels];
#pragma GCC ivdep
    for (int64_t c = 0; c < n; ++c) sum[c] = tapped<T, TAPS>(taps, rows, c, each);
    if (!BACKWARD) {
      T* y = o.y + b * o.y_batch + t * o.y_time + first;
      if (o.silu) {
        for (int64_t c = 0; c < n; ++c) y[c] = sum[c] * sigmoid<T>(sum[c]);
      } else {
        std::memcpy(y, sum, n * sizeof(T));
      }
      continue;
    }
    const T* g = o.g + b * o.g_batch + t * o.g_time + first;
    T slope[kChannels];  // the gradient of the sum
    if (o.silu) {
      for (int64_t c = 0; c < n; ++c) slope[c] = g[c] * silu_slope<T>(sum[c], sigmoid<T>(sum[c]));
    } else {
      std::memcpy(slope, g, n * sizeof(T));
    }
#pragma GCC ivdep
    for (int64_t c = 0; c < n; ++c) tapped_back<T, TAPS>(slope[c], taps, rows, dtaps, drows, c, each);
  }
  if (!BACKWARD) return;
  for (int64_t c = 0; c < n; ++c) {
    for (int64_t j = 0; j < o.width; ++j) {
      o.dkernel[(b * o.channels + first + c) * o.width + j] = dtaps[(TAPS - o.width + j) * kChannels + c];
    }
  }
}

// Most convolutions have few taps.
constexpr int kFew = 4;

template <typename T, bool BACKWARD>
FWP_PART void convolutions(const Convolution<T>& o, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    if (o.width <= kFew) {
      convolution<T, kFew, BACKWARD>(o, unit);
    } else {
      convolution<T, kWidth, BACKWARD>(o, unit);
    }
  }
}

template <typename T>
FWP_PART void convolution_units(const Convolution<T>& o, int64_t begin, int64_t end) {
  convolutions<T, false>(o, begin, end);
}

template <typename T>
FWP_PART void convolution_units_back(const Convolution<T>& o, int64_t begin, int64_t end) {
  convolutions<T, true>(o, begin, end);
}

FWP_KERNEL(convolve, convolution_units, Convolution)
FWP_KERNEL(convolve_back, convolution_units_back, Convolution)

// ---- normalisation ----

// How a row x is scaled: by 1 / sqrt(mean(x^2) + eps), 1 / sqrt(sum(x^2) + eps), 1 / (sum(x) + eps).
enum class Norm : int32_t { kRms, kL2, kSum };

// One unit is some rows of `n` elements, which all tensors have in the same places.
template <typename T>
struct Normalisation {
  Norm norm;
  double eps;
  int64_t rows, n;
  const T* x;
  const T* gain;  // [n]; or null
  T* y;
  // Of the backward pass only.
  const T* g;
  T* dx;
  T* dgain;  // [units, n], a part for every unit; null without a gain

  // By the size of a row alone.
  int64_t rows_of_unit() const { return std::max<int64_t>(1, kGrain / n); }
  int64_t units() const { return (rows + rows_of_unit() - 1) / rows_of_unit(); }
};

template <typename T>
FWP_PART void normalisation(const Normalisation<T>& o, int64_t begin, int64_t end) {
  const int64_t n = o.n, last = std::min(o.rows, end * o.rows_of_unit());
  for (int64_t row = begin * o.rows_of_unit(); row < last; ++row) {
    const T* __restrict x = o.x + row * n;
    T* __restrict y = o.y + row * n;
    T scale;
    if (o.norm == Norm::kSum) {
      scale = T(1) / (sum_of<T, false, false>(x, nullptr, nullptr, n) + T(o.eps));
    } else {
      const T squares = sum_of<T, true, false>(x, x, nullptr, n);
      scale = T(1) / std::sqrt((o.norm == Norm::kRms ? squares / T(n) : squares) + T(o.eps));
    }
    if (o.gain == nullptr) {
      for (int64_t i = 0; i < n; ++i) y[i] = x[i] * scale;
    } else {
      for (int64_t i = 0; i < n; ++i) y[i] = x[i] * scale * o.gain[i];
    }
  }
}

// With u the gradient times the gain and s the scale: s (u - x s^2 <u, x>), over n for the mean, and s (u - s <u, x>) for a plain sum.
template <typename T>
FWP_PART void normalisation_back(const Normalisation<T>& o, int64_t begin, int64_t end) {
  const int64_t n = o.n, last = std::min(o.rows, end * o.rows_of_unit());
  for (int64_t row = begin * o.rows_of_unit(); row < last; ++row) {
    T* __restrict dgain = o.dgain == nullptr ? nullptr : o.dgain + row / o.rows_of_unit() * n;
    if (dgain != nullptr && row % o.rows_of_unit() == 0) std::memset(dgain, 0, n * sizeof(T));
    const T* __restrict x = o.x + row * n;
    const T* __restrict g = o.g + row * n;
    T* __restrict dx = o.dx + row * n;
    const T* __restrict gain = o.gain;
    const T along = gain == nullptr ? sum_of<T, true, false>(g, x, nullptr, n) : sum_of<T, true, true>(g, x, gain, n);
    T scale, of_x = 0, of_one = 0;
    if (o.norm == Norm::kSum) {
      scale = T(1) / (sum_of<T, false, false>(x, nullptr, nullptr, n) + T(o.eps));
      of_one = scale * along;
    } else {
      const T squares = sum_of<T, true, false>(x, x, nullptr, n);
      const T count = o.norm == Norm::kRms ? T(n) : T(1);
      scale = T(1) / std::sqrt(squares / count + T(o.eps));
      of_x = scale * scale * along / count;
    }
    if (gain == nullptr) {
      for (int64_t i = 0; i < n; ++i) dx[i] = scale * (g[i] - x[i] * of_x - of_one);
    } else {
      for (int64_t i = 0; i < n; ++i) {
        dx[i] = scale * (g[i] * gain[i] - x[i] * of_x - of_one);
        dgain[i] += g[i] * x[i] * scale;
      }
    }
  }
}

FWP_KERNEL(normalise, normalisation, Normalisation)
FWP_KERNEL(normalise_back, normalisation_back, Normalisation)

// ---- gate ----

// y = a sigmoid(a) b, of elements that all tensors have in the same places; kGrain of them are a unit.
// Units and not elements are shared among threads: the last of a range are rounded otherwise than whole vectors.
template <typename T>
struct Gate {
  int64_t n;
  const T* a;
  const T* b;
  T* y;
  // Of the backward pass only.
  const T* g;
  T* da;
  T* db;

  // Runs `kernel` on all units, on as many threads as they are worth.
  void run(void (*kernel)(const Gate<T>&, int64_t, int64_t)) const {
    at::parallel_for(0, (n + kGrain - 1) / kGrain, 1, [&](int64_t begin, int64_t end) { kernel(*this, begin, end); });
  }
};

template <typename T>
FWP_PART void gate(const Gate<T>& o, int64_t begin, int64_t end) {
  T* __restrict y = o.y;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t last = std::min(o.n, (unit + 1) * kGrain);
    for (int64_t i = unit * kGrain; i < last; ++i) y[i] = o.a[i] * sigmoid<T>(o.a[i]) * o.b[i];
  }
}

template <typename T>
FWP_PART void gate_back(const Gate<T>& o, int64_t begin, int64_t end) {
  T* __restrict da = o.da;
  T* __restrict db = o.db;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t last = std::min(o.n, (unit + 1) * kGrain);
    for (int64_t i = unit * kGrain; i < last; ++i) {
      const T a = o.a[i], g = o.g[i], s = sigmoid<T>(a);
      da[i] = g * o.b[i] * silu_slope<T>(a, s);
      db[i] = g * (a * s);
    }
  }
}

FWP_KERNEL(gated, gate, Gate)
FWP_KERNEL(gated_back, gate_back, Gate)

// ---- tensors ----

// `t` with a dense last axis.
Tensor dense_last(const Tensor& t) { return t.stride(-1) == 1 ? t : t.contiguous(); }

// Adds `parts` rows of `n` numbers, in order.
template <typename T>
Tensor sum_parts(const Tensor& parts, at::IntArrayRef sizes) {
  Tensor sum = at::zeros(sizes, parts.options());
  T* to = sum.mutable_data_ptr<T>();
  const T* from = parts.const_data_ptr<T>();
  const int64_t n = sum.numel();
  for (int64_t p = 0; p < parts.size(0); ++p) {
    for (int64_t i = 0; i < n; ++i) to[i] += from[p * n + i];
  }
  return sum;
}

// What both passes of a convolution are given; keeps the tensors that it points into.
struct Given {
  Tensor x, kernel, ring, reset;

  Given(const Tensor& x_, const Tensor& kernel_, const Tensor* ring_, const Tensor* reset_)
      : x(dense_last(x_)), kernel(kernel_.contiguous()) {
    TORCH_CHECK(x.dim() == 3 && kernel.dim() == 2, "a convolution of ", x.sizes(), " with ", kernel.sizes());
    const int64_t width = kernel.size(1);
    TORCH_CHECK(width >= 1 && width <= kWidth, "a convolution of ", width, " steps");
    expect(x, x, x.sizes(), "the input");
    expect(kernel, x, {x.size(2), width}, "the kernel");
    if (ring_ != nullptr && width > 1) {
      ring = ring_->contiguous();
      expect(ring, x, {x.size(0), width - 1, x.size(2)}, "the earlier steps");
    }
    if (reset_ != nullptr) {
      TORCH_CHECK(reset_->scalar_type() == at::kBool && reset_->sizes() == x.sizes().slice(0, 2), "the resets");
      reset = reset_->contiguous();
    }
  }

  template <typename T>
  Convolution<T> operation(bool silu) const {
    Convolution<T> o = {};
    o.time = x.size(1), o.channels = x.size(2), o.width = kernel.size(1);
    o.x = x.const_data_ptr<T>(), o.x_batch = x.stride(0), o.x_time = x.stride(1);
    o.kernel = kernel.const_data_ptr<T>();
    if (ring.defined()) o.ring = ring.const_data_ptr<T>();
    if (reset.defined()) o.reset = reinterpret_cast<const uint8_t*>(reset.const_data_ptr<bool>());
    o.silu = silu;
    return o;
  }

  // Runs `kernel` on all units, on as many threads as they are worth.
  template <typename T>
  void run(const Convolution<T>& o, void (*kernel)(const Convolution<T>&, int64_t, int64_t)) const {
    const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, o.time * kChannels));
    at::parallel_for(0, x.size(0) * o.blocks(), grain, [&](int64_t begin, int64_t end) { kernel(o, begin, end); });
  }
};

// What both passes of a normalisation are given; keeps the tensors that it points into.
struct Rows {
  Tensor x, gain;

  Rows(const Tensor& x_, const Tensor* gain_) : x(whole(x_)) {
    TORCH_CHECK(x.dim() > 0 && x.numel() > 0, "a normalisation of ", x.sizes());
    expect(x, x, x.sizes(), "the input");
    if (gain_ == nullptr) return;
    gain = gain_->contiguous();
    expect(gain, x, {x.size(-1)}, "the gain");
  }

  template <typename T>
  Normalisation<T> operation(Norm norm, double eps) const {
    Normalisation<T> o = {};
    o.norm = norm, o.eps = eps;
    o.n = x.size(-1), o.rows = x.numel() / o.n;
    o.x = x.const_data_ptr<T>();
    if (gain.defined()) o.gain = gain.const_data_ptr<T>();
    return o;
  }

  // Runs `kernel` on all units, on as many threads as they are worth.
  template <typename T>
  void run(const Normalisation<T>& o, void (*kernel)(const Normalisation<T>&, int64_t, int64_t)) const {
    at::parallel_for(0, o.units(), 1, [&](int64_t begin, int64_t end) { kernel(o, begin, end); });
  }
};

}  // namespace

extern "C" {

// y [batch, time, channels]: x with taps [channels, width] over this step and those before it,
// then SiLU where it is asked for. `ring` [batch, width - 1, channels] and `reset` [batch, time]
// may be NULL.
char* fwp_convolution(const Tensor* x, const Tensor* kernel, const Tensor* ring, const Tensor* reset,
                      bool silu, Tensor** y) {
  return guarded([&] {
    Below below;
    const Given given(*x, *kernel, ring, reset);
    Tensor result = at::empty_like(given.x);
    by_type(given.x, [&](auto zero) {
      using T = decltype(zero);
      auto o = given.operation<T>(silu);
      o.y = result.mutable_data_ptr<T>(), o.y_batch = result.stride(0), o.y_time = result.stride(1);
      given.run(o, &convolve<T>);
    });
    *y = new Tensor(result);
  });
}

// Gradients of x, the kernel and, where `dring` is not NULL, the ring.
char* fwp_convolution_back(const Tensor* g, const Tensor* x, const Tensor* kernel, const Tensor* ring,
                           const Tensor* reset, bool silu, Tensor** dx, Tensor** dkernel, Tensor** dring) {
  return guarded([&] {
    Below below;
    const Given given(*x, *kernel, ring, reset);
    const Tensor from = dense_last(*g);
    expect(from, given.x, given.x.sizes(), "the gradient");
    Tensor to = at::empty_like(given.x), before, taps;
    if (dring != nullptr && given.ring.defined()) before = at::empty_like(given.ring);
    Tensor parts = at::empty({to.size(0), to.size(2), given.kernel.size(1)}, to.options());
    by_type(to, [&](auto zero) {
      using T = decltype(zero);
      auto o = given.operation<T>(silu);
      o.g = from.const_data_ptr<T>(), o.g_batch = from.stride(0), o.g_time = from.stride(1);
      o.dx = to.mutable_data_ptr<T>(), o.dx_batch = to.stride(0), o.dx_time = to.stride(1);
      o.dkernel = parts.mutable_data_ptr<T>();
      if (before.defined()) o.dring = before.mutable_data_ptr<T>();
      given.run(o, &convolve_back<T>);
      taps = sum_parts<T>(parts, given.kernel.sizes());
    });
    *dx = new Tensor(to);
    *dkernel = new Tensor(taps);
    if (before.defined()) *dring = new Tensor(before);
  });
}

// x scaled over its last axis, and times a gain [n], which may be NULL.
char* fwp_normalise(const Tensor* x, const Tensor* gain, int32_t norm, double eps, Tensor** y) {
  return guarded([&] {
    Below below;
    const Rows rows(*x, gain);
    Tensor result = at::empty_like(rows.x);
    by_type(rows.x, [&](auto zero) {
      using T = decltype(zero);
      auto o = rows.operation<T>(static_cast<Norm>(norm), eps);
      o.y = result.mutable_data_ptr<T>();
      rows.run(o, &normalise<T>);
    });
    *y = new Tensor(result);
  });
}

// Gradients of x and, where there is one, of the gain.
char* fwp_normalise_back(const Tensor* g, const Tensor* x, const Tensor* gain, int32_t norm, double eps,
                         Tensor** dx, Tensor** dgain) {
  return guarded([&] {
    Below below;
    const Rows rows(*x, gain);
    expect(*g, rows.x, rows.x.sizes(), "the gradient");
    const Tensor from = placed(*g, rows.x);
    Tensor to = at::empty_like(rows.x), of_gain;
    by_type(to, [&](auto zero) {
      using T = decltype(zero);
      auto o = rows.operation<T>(static_cast<Norm>(norm), eps);
      o.g = from.const_data_ptr<T>(), o.dx = to.mutable_data_ptr<T>();
      Tensor parts;
      if (gain != nullptr) {
        parts = at::empty({o.units(), o.n}, to.options());
        o.dgain = parts.mutable_data_ptr<T>();
      }
      rows.run(o, &normalise_back<T>);
      if (gain != nullptr) of_gain = sum_parts<T>(parts, {o.n});
    });
    *dx = new Tensor(to);
    if (of_gain.defined()) *dgain = new Tensor(of_gain);
  });
}

// a sigmoid(a) b, of one shape.
char* fwp_gate(const Tensor* a, const Tensor* b, Tensor** y) {
  return guarded([&] {
    Below below;
    const Tensor first = whole(*a);
    expect(*b, first, first.sizes(), "the gated value");
    const Tensor second = placed(*b, first);
    Tensor result = at::empty_like(first);
    by_type(first, [&](auto zero) {
      using T = decltype(zero);
      Gate<T> o = {};
      o.n = first.numel();
      o.a = first.const_data_ptr<T>(), o.b = second.const_data_ptr<T>(), o.y = result.mutable_data_ptr<T>();
      o.run(&gated<T>);
    });
    *y = new Tensor(result);
  });
}

// Gradients of a and b.
char* fwp_gate_back(const Tensor* g, const Tensor* a, const Tensor* b, Tensor** da, Tensor** db) {
  return guarded([&] {
    Below below;
    const Tensor first = whole(*a);
    expect(*b, first, first.sizes(), "the gated value");
    expect(*g, first, first.sizes(), "the gradient");
    const Tensor second = placed(*b, first), from = placed(*g, first);
    Tensor to_first = at::empty_like(first), to_second = at::empty_like(first);
    by_type(first, [&](auto zero) {
      using T = decltype(zero);
      Gate<T> o = {};
      o.n = first.numel();
      o.a = first.const_data_ptr<T>(), o.b = second.const_data_ptr<T>(), o.g = from.const_data_ptr<T>();
      o.da = to_first.mutable_data_ptr<T>(), o.db = to_second.mutable_data_ptr<T>();
      o.run(&gated_back<T>);
    });
    *da = new Tensor(to_first);
    *db = new Tensor(to_second);
  });
}

}  // extern "C"
