// Linear maps of rows that are looked up: W [x_1; x_2; ...] + b where every x_j is a row of a table, or
// one_hot of an index.
//
// A linear map of a row is a row of the mapped table. Where tables have fewer rows than are asked for,
// they are mapped once, and what is left is a sum of rows. Entry points follow the conventions of shim.cpp.

#include "lanes.h"

#include <algorithm>
#include <vector>

using at::Tensor;

namespace {

constexpr int64_t kColumns = 64;  // of a unit of the backward pass

// One part of x.
struct Part {
  Tensor index;   // [rows]
  Tensor table;   // [symbols, width]; undefined for one_hot, where width is symbols
  int64_t first;  // column of W where it begins
  int64_t width, symbols;
  // Where its mapped table begins among the rows of all: [symbols + 1, outputs], the last row for an index that one_hot does not know.
  int64_t place;
};

// y[r] is the sum over parts of their mapped row index[r]; one unit is some of the rows.
template <typename T>
struct Sum {
  int64_t rows, n;
  std::vector<const int64_t*> index;
  std::vector<int64_t> symbols;
  std::vector<T*> mapped;
  T* y;

  // By the size of a row alone.
  int64_t rows_of_unit() const { return std::max<int64_t>(1, kGrain / n); }
  int64_t units() const { return (rows + rows_of_unit() - 1) / rows_of_unit(); }
};

FWP_PART int64_t known(int64_t index, int64_t symbols) { return index >= 0 && index < symbols ? index : symbols; }

template <typename T>
FWP_PART void sum_rows(const Sum<T>& o, int64_t begin, int64_t end) {
  const int64_t n = o.n, last = std::min(o.rows, end * o.rows_of_unit());
  for (int64_t row = begin * o.rows_of_unit(); row < last; ++row) {
    T* __restrict y = o.y + row * n;
    const T* __restrict from = o.mapped[0] + known(o.index[0][row], o.symbols[0]) * n;
    for (int64_t i = 0; i < n; ++i) y[i] = from[i];
    for (size_t j = 1; j < o.index.size(); ++j) {
      const T* __restrict more = o.mapped[j] + known(o.index[j][row], o.symbols[j]) * n;
      for (int64_t i = 0; i < n; ++i) y[i] += more[i];
    }
  }
}

// The gradient of the mapped tables; one unit is one part and some columns.
template <typename T>
struct Scatter {
  int64_t rows, n;
  std::vector<const int64_t*> index;
  std::vector<int64_t> symbols;
  std::vector<T*> mapped;
  const T* g;

  int64_t blocks() const { return (n + kColumns - 1) / kColumns; }
};

template <typename T>
FWP_PART void scatter_rows(const Scatter<T>& o, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t part = unit / o.blocks(), first = unit % o.blocks() * kColumns;
    const int64_t count = std::min(kColumns, o.n - first), symbols = o.symbols[part];
    const int64_t* index = o.index[part];
    T* mapped = o.mapped[part] + first;
    for (int64_t s = 0; s <= symbols; ++s) std::memset(mapped + s * o.n, 0, count * sizeof(T));
    for (int64_t row = 0; row < o.rows; ++row) {
      T* __restrict to = mapped + known(index[row], symbols) * o.n;
      const T* __restrict g = o.g + row * o.n + first;
      if (count == kColumns) {
        for (int64_t i = 0; i < kColumns; ++i) to[i] += g[i];
      } else {
        for (int64_t i = 0; i < count; ++i) to[i] += g[i];
      }
    }
  }
}

FWP_KERNEL(look_up, sum_rows, Sum)
FWP_KERNEL(scatter, scatter_rows, Scatter)

// What both passes are given.
struct Given {
  Tensor weight;  // [outputs, columns]
  std::vector<Part> parts;
  Tensor mapped;  // the mapped tables of all parts, or their gradients
  int64_t rows, n, columns = 0;

  // `widths`: of every part; its table is NULL for one_hot.
  Given(const Tensor& weight_, Tensor* const* tables, Tensor* const* indices, const int64_t* widths, size_t count)
      : weight(weight_.contiguous()), rows(indices[0]->numel()), n(weight_.size(0)) {
    int64_t place = 0;
    for (size_t j = 0; j < count; ++j) {
      TORCH_CHECK(indices[j]->scalar_type() == at::kLong && indices[j]->sizes() == indices[0]->sizes(), "a look-up by ",
                  indices[j]->sizes(), " ", indices[j]->scalar_type());
      Part part = {indices[j]->contiguous(), Tensor(), columns, widths[j], widths[j], place};
      if (tables[j] != nullptr) {
        part.table = tables[j]->contiguous();
        part.symbols = part.table.size(0);
        expect(part.table, weight, {part.symbols, part.width}, "the table");
        const int64_t* index = part.index.const_data_ptr<int64_t>();
        for (int64_t r = 0; r < rows; ++r) {
          TORCH_CHECK(index[r] >= 0 && index[r] < part.symbols, "index ", index[r], " into a table of ", part.symbols);
        }
      }
      place += part.symbols + 1;
      columns += part.width;
      parts.push_back(part);
    }
    expect(weight, weight, {n, columns}, "the weight");
    mapped = at::empty({place, n}, weight.options());
  }

  // The columns of a matrix like the weight that belong to a part.
  static Tensor of(const Part& part, const Tensor& matrix) { return matrix.narrow(1, part.first, part.width); }

  // The rows of a part, without the last.
  Tensor known(const Part& part) const { return mapped.narrow(0, part.place, part.symbols); }

  // Calls `f` with every element of a part's columns of the weight and its place among the part's rows.
  template <typename F>
  void transposed(const Part& part, F&& f) const {
    for (int64_t s = 0; s < part.symbols; ++s) {
      for (int64_t o = 0; o < n; ++o) f(o * columns + part.first + s, (part.place + s) * n + o);
    }
  }

  // What the loops are given of all parts.
  template <typename T, typename Operation>
  Operation operation() const {
    Operation o = {};
    o.rows = rows, o.n = n;
    for (const Part& part : parts) {
      o.index.push_back(part.index.const_data_ptr<int64_t>()), o.symbols.push_back(part.symbols);
      o.mapped.push_back(mapped.mutable_data_ptr<T>() + part.place * n);
    }
    return o;
  }
};

}  // namespace

extern "C" {

// y [rows, outputs] of the indices' shape; `bias` [outputs] may be NULL.
char* fwp_look_up(const Tensor* weight, const Tensor* bias, Tensor* const* tables, Tensor* const* indices,
                  const int64_t* widths, size_t count, Tensor** y) {
  return guarded([&] {
    Below below;
    const Given given(*weight, tables, indices, widths, count);
    if (bias != nullptr) expect(*bias, given.weight, {given.n}, "the bias");
    auto sizes = indices[0]->sizes().vec();
    sizes.push_back(given.n);
    Tensor result = at::empty(sizes, given.weight.options());
    by_type(result, [&](auto zero) {
      using T = decltype(zero);
      const int64_t n = given.n;
      const T* from = given.weight.const_data_ptr<T>();
      T* mapped = given.mapped.mutable_data_ptr<T>();
      for (const Part& part : given.parts) {
        if (part.table.defined()) {
          Tensor known = given.known(part);
          at::mm_out(known, part.table, Given::of(part, given.weight).t());
        } else {
          given.transposed(part, [&](int64_t w, int64_t m) { mapped[m] = from[w]; });
        }
        std::memset(mapped + (part.place + part.symbols) * n, 0, n * sizeof(T));
      }
      if (bias != nullptr) {
        const Tensor added = bias->contiguous();
        const T* b = added.const_data_ptr<T>();
        for (int64_t s = 0; s <= given.parts[0].symbols; ++s) {
          for (int64_t o = 0; o < n; ++o) mapped[s * n + o] += b[o];
        }
      }
      auto o = given.operation<T, Sum<T>>();
      o.y = result.mutable_data_ptr<T>();
      at::parallel_for(0, o.units(), 1, [&](int64_t begin, int64_t end) { look_up<T>(o, begin, end); });
    });
    *y = new Tensor(result);
  });
}

// Gradients of the weight, the bias and every table; those of one_hot stay NULL.
char* fwp_look_up_back(const Tensor* g, const Tensor* weight, Tensor* const* tables, Tensor* const* indices,
                       const int64_t* widths, size_t count, Tensor** dweight, Tensor** dbias, Tensor** dtables) {
  return guarded([&] {
    Below below;
    const Given given(*weight, tables, indices, widths, count);
    auto sizes = indices[0]->sizes().vec();
    sizes.push_back(given.n);
    expect(*g, given.weight, sizes, "the gradient");
    const Tensor from = g->contiguous();
    Tensor of_weight = at::empty_like(given.weight), of_bias = at::zeros({given.n}, given.weight.options());
    by_type(from, [&](auto zero) {
      using T = decltype(zero);
      auto o = given.operation<T, Scatter<T>>();
      o.g = from.const_data_ptr<T>();
      const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, o.rows * std::min(o.n, kColumns)));
      at::parallel_for(0, o.blocks() * count, grain, [&](int64_t begin, int64_t end) { scatter<T>(o, begin, end); });
      T* to = of_weight.mutable_data_ptr<T>();
      const T* mapped = given.mapped.const_data_ptr<T>();
      for (size_t j = 0; j < count; ++j) {
        const Part& part = given.parts[j];
        if (part.table.defined()) {
          const Tensor known = given.known(part);
          Tensor columns = Given::of(part, of_weight);
          at::mm_out(columns, known.t(), part.table);
          dtables[j] = new Tensor(at::mm(known, Given::of(part, given.weight)));
        } else {
          given.transposed(part, [&](int64_t w, int64_t m) { to[w] = mapped[m]; });
        }
      }
      // Every row of y has the bias once, and one row of the first part.
      T* b = of_bias.mutable_data_ptr<T>();
      for (int64_t s = 0; s <= given.parts[0].symbols; ++s) {
        for (int64_t i = 0; i < given.n; ++i) b[i] += mapped[s * given.n + i];
      }
    });
    *dweight = new Tensor(of_weight);
    *dbias = new Tensor(of_bias);
  });
}

// one_hot(index) of `size` numbers, of double precision where `wide`; of an index that is not among them, zeros.
char* fwp_one_hot(const Tensor* index, int64_t size, bool wide, Tensor** y) {
  return guarded([&] {
    Below below;
    TORCH_CHECK(index->device().is_cpu() && index->scalar_type() == at::kLong, "one_hot of ", index->scalar_type());
    const Tensor from = index->contiguous();
    auto sizes = index->sizes().vec();
    sizes.push_back(size);
    Tensor result = at::zeros(sizes, wide ? at::kDouble : at::kFloat);
    by_type(result, [&](auto zero) {
      using T = decltype(zero);
      const int64_t* i = from.const_data_ptr<int64_t>();
      T* to = result.mutable_data_ptr<T>();
      for (int64_t row = 0; row < from.numel(); ++row) {
        if (i[row] >= 0 && i[row] < size) to[row * size + i[row]] = 1;
      }
    });
    *y = new Tensor(result);
  });
}

}  // extern "C"
