//! Linear maps of rows that are looked up: W [x_1; x_2; ...] + b, where every x_j is a row of a table or one_hot of an index.
//!
//! A linear map of a row is a row of the mapped table.
//! Where a table has fewer rows than are asked for, as that of a few symbols along a sequence, it is mapped once, and what is left is a sum of rows.

use anyhow::{Result, bail, ensure};
use fwp_sdk::program::Op;
use tch::{Device, Kind, Tensor};

use super::fused::{recorded, served};
use super::ops;
use super::value::{Lead, Precision, Value};
use crate::shim::lookup::Lookup;

/// How a part of the vector that is mapped is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// one_hot of an index, of this size.
    OneHot(usize),
    /// A row of a table.
    Row,
}

/// A look-up without its operands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// The parts in order.
    pub parts: Vec<Part>,
    /// Whether a bias is added.
    pub bias: bool,
}

/// The operands of a look-up.
struct Operands<'a> {
    weight: &'a Value,
    bias: Option<&'a Value>,
    tables: Vec<Option<&'a Value>>,
    indices: Vec<&'a Value>,
}

impl Form {
    /// Operands in the order of [`Form::apply`]: the weight, the bias, and of each part its table and its index.
    fn sorted<'a>(&self, operands: &[&'a Value]) -> Result<Operands<'a>> {
        let mut all = operands.iter().copied();
        let mut next = || all.next().ok_or_else(|| anyhow::anyhow!("internal: a look-up with too few operands"));
        let weight = next()?;
        let bias = if self.bias { Some(next()?) } else { None };
        let (mut tables, mut indices) = (Vec::new(), Vec::new());
        for part in &self.parts {
            tables.push(if *part == Part::Row { Some(next()?) } else { None });
            indices.push(next()?);
        }
        Ok(Operands { weight, bias, tables, indices })
    }

    /// The result: a vector for every index.
    ///
    /// # Errors
    /// An index beyond its table; libtorch's.
    pub fn apply(&self, operands: &[&Value], precision: Precision) -> Result<Value> {
        let given = self.sorted(operands)?;
        if !self.pays(&given) {
            return self.plain(&given, precision);
        }
        let lead = given.indices[0].lead;
        // The steps of a sequence lie apart in memory and the samples of a step together, as after every look-up along a sequence.
        let apart = lead == Lead::AXIS;
        let around = |t: &Tensor| if apart { t.f_transpose(0, 1) } else { Ok(t.shallow_clone()) };
        let indices = given.indices.iter().map(|v| around(&v.tensor)).collect::<Result<Vec<_>, _>>()?;
        let tables: Vec<Option<&Tensor>> = given.tables.iter().map(|t| t.map(|v| &v.tensor)).collect();
        let inputs: Vec<&Tensor> = [&given.weight.tensor]
            .into_iter()
            .chain(given.bias.map(|v| &v.tensor))
            .chain(tables.iter().flatten().copied())
            .collect();
        let others: Vec<&Tensor> = indices.iter().collect();
        let widths = self.widths(&tables);
        let bias = given.bias.map(|v| &v.tensor);
        let y = Lookup { weight: &given.weight.tensor, bias, tables: &tables, indices: &others, widths: &widths }.forward()?;
        let (form, again) = (self.clone(), self.clone());
        let y = recorded(
            &inputs,
            &others,
            y,
            move |i| {
                // In the order of the inputs, of which every one but an index is the same for all.
                let values: Vec<Value> = form.flat(i).into_iter().zip(form.leads(lead)).map(|(t, l)| Value::new(t, l)).collect();
                let all: Vec<&Value> = values.iter().collect();
                Ok(form.plain(&form.sorted(&all)?, precision)?.tensor)
            },
            move |g, i, _| again.backward(g, i),
        )?;
        Ok(Value::new(around(&y)?, lead))
    }

    /// Whether this is what [`Lookup`] serves, and less work than a product for every index.
    fn pays(&self, given: &Operands<'_>) -> bool {
        let same = given.weight.lead == Lead::NONE
            && given.bias.is_none_or(|b| b.lead == Lead::NONE)
            && given.tables.iter().flatten().all(|t| t.lead == Lead::NONE);
        let first = given.indices[0];
        let rows = first.tensor.numel();
        let along = given.indices.iter().all(|i| {
            let plain = i.tensor.kind() == Kind::Int64 && i.tensor.device() == Device::Cpu;
            plain && i.rank() == 0 && i.lead == first.lead && i.tensor.size() == first.tensor.size()
        });
        let symbols = |(part, table): (&Part, &Option<&Value>)| match (part, table) {
            (Part::OneHot(size), _) => *size,
            (Part::Row, Some(table)) => table.tensor.size()[0] as usize,
            (Part::Row, None) => usize::MAX,
        };
        let few = self.parts.iter().zip(&given.tables).all(|p| symbols(p) <= rows);
        let floats: Vec<&Tensor> = [given.weight]
            .into_iter()
            .chain(given.bias)
            .chain(given.tables.iter().flatten().copied())
            .map(|v| &v.tensor)
            .collect();
        same && along && few && rows > 0 && served(&floats)
    }

    fn widths(&self, tables: &[Option<&Tensor>]) -> Vec<i64> {
        let width = |(part, table): (&Part, &Option<&Tensor>)| match part {
            Part::OneHot(size) => *size as i64,
            Part::Row => table.map_or(0, |t| t.size()[1]),
        };
        self.parts.iter().zip(tables).map(width).collect()
    }

    /// Tensors in the order of a graph's inputs (weight, bias, tables, indices) in that of the operands.
    fn flat(&self, i: &[Tensor]) -> Vec<Tensor> {
        let fixed = 1 + usize::from(self.bias);
        let mut tables = i[fixed..].iter();
        let mut indices = i[i.len() - self.parts.len()..].iter();
        let mut all: Vec<Tensor> = i[..fixed].iter().map(Tensor::shallow_clone).collect();
        for part in &self.parts {
            if *part == Part::Row {
                all.extend(tables.next().map(Tensor::shallow_clone));
            }
            all.extend(indices.next().map(Tensor::shallow_clone));
        }
        all
    }

    /// The leading axes of the operands, where indices have these.
    fn leads(&self, lead: Lead) -> Vec<Lead> {
        let fixed = vec![Lead::NONE; 1 + usize::from(self.bias)];
        let of_part = |part: &Part| if *part == Part::Row { vec![Lead::NONE, lead] } else { vec![lead] };
        fixed.into_iter().chain(self.parts.iter().flat_map(of_part)).collect()
    }

    /// Gradients of the weight, the bias and the tables.
    fn backward(&self, g: &Tensor, i: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        let fixed = 1 + usize::from(self.bias);
        let (inputs, indices) = i.split_at(i.len() - self.parts.len());
        let mut rows = inputs[fixed..].iter();
        let tables: Vec<Option<&Tensor>> = self.parts.iter().map(|p| if *p == Part::Row { rows.next() } else { None }).collect();
        let indices: Vec<&Tensor> = indices.iter().collect();
        let widths = self.widths(&tables);
        let made = Lookup { weight: &i[0], bias: None, tables: &tables, indices: &indices, widths: &widths }.backward(g)?;
        let bias = self.bias.then_some(made.bias);
        let answer: Vec<Option<Tensor>> =
            [made.weight].into_iter().chain(bias).chain(made.tables.into_iter().flatten()).map(Some).collect();
        ensure!(answer.len() == inputs.len(), "internal: {} gradients of a look-up of {}", answer.len(), inputs.len());
        Ok(answer)
    }

    /// The same, operation by operation.
    fn plain(&self, given: &Operands<'_>, precision: Precision) -> Result<Value> {
        let mut parts = Vec::new();
        for ((part, table), index) in self.parts.iter().zip(&given.tables).zip(&given.indices) {
            parts.push(match (part, table) {
                (Part::OneHot(size), _) => ops::apply(&Op::OneHot { size: *size }, &[index], precision)?,
                (Part::Row, Some(table)) => ops::apply(&Op::Gather, &[table, index], precision)?,
                (Part::Row, None) => bail!("internal: a row of nothing"),
            });
        }
        let x = match &parts[..] {
            [one] => one.clone(),
            several => ops::apply(&Op::Concat { axis: 0 }, &several.iter().collect::<Vec<_>>(), precision)?,
        };
        let y = ops::apply(&Op::MatVec, &[given.weight, &x], precision)?;
        match given.bias {
            Some(bias) => ops::apply(&Op::Add, &[&y, bias], precision),
            None => Ok(y),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fused::testing::compare;
    use super::*;
    use crate::shim::testing::numbers;

    /// Irregular indices below `symbols`, `[5, 9]` or `[45]`.
    fn indices(symbols: i64, by: i64, lead: Lead) -> Value {
        let i = (Tensor::arange(45, (Kind::Int64, Device::Cpu)) * by).remainder(7919).remainder(symbols);
        if lead == Lead::AXIS { Value::new(i.reshape([5, 9]), lead) } else { Value::new(i, lead) }
    }

    #[test]
    fn a_map_of_looked_up_rows_is_the_product() {
        let (one, row) = (Part::OneHot, Part::Row);
        for lead in [Lead::AXIS, Lead::BATCH] {
            for parts in [vec![row], vec![one(6)], vec![one(4), row], vec![row, one(3), row]] {
                for outputs in [1, 5, 64, 130] {
                    for bias in [false, true] {
                        let form = Form { parts: parts.clone(), bias };
                        let rows: Vec<i64> =
                            parts.iter().enumerate().filter(|(_, p)| **p == row).map(|(j, _)| 3 + j as i64).collect();
                        let tables: Vec<Tensor> = rows.iter().map(|n| numbers(&[*n, n + 4])).collect();
                        let index = |j: usize, p: &Part| {
                            indices(if let Part::OneHot(n) = p { *n as i64 } else { 3 + j as i64 }, 11 + j as i64, lead)
                        };
                        let found: Vec<Value> = parts.iter().enumerate().map(|(j, p)| index(j, p)).collect();
                        let hot: i64 = parts.iter().map(|p| if let Part::OneHot(n) = p { *n as i64 } else { 0 }).sum();
                        let width = hot + tables.iter().map(|t| t.size()[1]).sum::<i64>();
                        // Not as it is read: a transposed weight.
                        let inputs: Vec<Tensor> = [numbers(&[width, outputs]).transpose(0, 1) * 0.1]
                            .into_iter()
                            .chain(bias.then(|| numbers(&[outputs])))
                            .chain(tables)
                            .collect();
                        let operands = |i: &[Tensor]| -> Vec<Value> {
                            let all: Vec<Tensor> =
                                i.iter().chain(found.iter().map(|v| &v.tensor)).map(Tensor::shallow_clone).collect();
                            form.flat(&all).into_iter().zip(form.leads(lead)).map(|(t, l)| Value::new(t, l)).collect()
                        };
                        let run = |i: &[Tensor], fast: bool| -> Result<Tensor> {
                            let values = operands(i);
                            let all: Vec<&Value> = values.iter().collect();
                            let precision = Precision { kind: i[0].kind(), device: Device::Cpu };
                            assert!(form.pays(&form.sorted(&all)?));
                            let y = if fast { form.apply(&all, precision)? } else { form.plain(&form.sorted(&all)?, precision)? };
                            assert_eq!(y.lead, lead);
                            Ok(y.tensor)
                        };
                        let what = format!("{lead:?} {parts:?} {outputs} {bias}");
                        compare(&what, &inputs, &|i| run(i, true), &|i| run(i, false));
                    }
                }
            }
        }
    }

    #[test]
    fn an_index_that_nobody_knows_is_what_it_is_operation_by_operation() {
        let precision = Precision { kind: Kind::Double, device: Device::Cpu };
        let index = Value::new(Tensor::from_slice(&[1i64, -1, 2, 0, 7]), Lead::BATCH);
        // A bias with gaps between its numbers, and with a gradient from every row.
        let bias = numbers(&[4, 2]).select(1, 1).set_requires_grad(true);
        let (w, b) = (Value::new(numbers(&[4, 3]), Lead::NONE), Value::new(bias.shallow_clone(), Lead::NONE));
        let form = Form { parts: vec![Part::OneHot(3)], bias: true };
        let y = form.apply(&[&w, &b, &index], precision).unwrap().tensor;
        let gradient = Tensor::run_backward(&[y.sum(Kind::Double)], &[&bias], false, false).remove(0);
        assert_eq!(Vec::<f64>::try_from(gradient).unwrap(), [5.0; 4]);
        let y = y.detach();
        let plain = form.plain(&form.sorted(&[&w, &b, &index]).unwrap(), precision).unwrap().tensor;
        assert!(y.allclose(&plain, 1e-14, 1e-14, false) && y.get(1).equal(&b.tensor) && y.get(4).equal(&b.tensor));
        let table = Value::new(numbers(&[2, 3]), Lead::NONE);
        let rows = Form { parts: vec![Part::Row], bias: false };
        assert!(rows.apply(&[&w, &table, &index], precision).is_err());
    }

    #[test]
    fn a_table_with_more_rows_than_are_asked_for_is_not_mapped() {
        let precision = Precision { kind: Kind::Double, device: Device::Cpu };
        let index = Value::new(Tensor::from_slice(&[1i64, 5]), Lead::BATCH);
        let (w, table) = (Value::new(numbers(&[4, 3]), Lead::NONE), Value::new(numbers(&[9, 3]), Lead::NONE));
        let form = Form { parts: vec![Part::Row], bias: false };
        assert!(!form.pays(&form.sorted(&[&w, &table, &index]).unwrap()));
        let expected = table.tensor.index_select(0, &index.tensor).matmul(&w.tensor.transpose(0, 1));
        assert!(form.apply(&[&w, &table, &index], precision).unwrap().tensor.allclose(&expected, 1e-14, 1e-14, false));
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        crate::shim::testing::alone("exec::lookup::tests::threads_inner");
    }

    #[test]
    #[ignore = "run by the test above, in a process of its own: the number of threads is one for all"]
    fn threads_inner() {
        let form = Form { parts: vec![Part::OneHot(20), Part::Row], bias: true };
        let index = |by: i64| (Tensor::arange(4000, (Kind::Int64, Device::Cpu)) * by).remainder(7919).remainder(20);
        let all = || {
            let leaf = |t: Tensor| t.to_kind(Kind::Float).set_requires_grad(true);
            let [w, b, table] = [&[200i64, 64][..], &[200], &[20, 44]]
                .map(|s| leaf(Tensor::arange(s.iter().product::<i64>(), (Kind::Double, Device::Cpu)).sin().view(s)));
            let values = [Value::new(w.shallow_clone(), Lead::NONE), Value::new(b.shallow_clone(), Lead::NONE)];
            let table = Value::new(table, Lead::NONE);
            let [i, j] = [11, 13].map(|by| Value::new(index(by).reshape([40, 100]), Lead::AXIS));
            let precision = Precision { kind: Kind::Float, device: Device::Cpu };
            let y = form.apply(&[&values[0], &values[1], &i, &table, &j], precision).unwrap().tensor;
            let g = y.detach().cos();
            let of = crate::shim::gradients(&[&y], &[Some(&g)], &[&w, &b, &table.tensor], false, false).unwrap();
            [y.detach()].into_iter().chain(of.into_iter().map(Option::unwrap)).collect::<Vec<_>>()
        };
        crate::shim::set_num_threads(1);
        let one = all();
        for threads in 2..5 {
            crate::shim::set_num_threads(threads);
            for (a, b) in one.iter().zip(all()) {
                assert!(a.equal(&b), "{threads} threads");
            }
        }
    }
}
