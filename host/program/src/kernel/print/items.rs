//! Scalars, and nodes with a loop of their own kind.

use std::fmt::Write;

use super::Printer;
use super::values::number;
use crate::kernel::graph::{Axis, Id, What};
use crate::kernel::nests::Task;

impl Printer<'_> {
    pub(super) fn scalar(&mut self, task: Task) -> Result<(), String> {
        match task {
            Task::Node(n) => {
                self.count(&[], n);
                let operands = self.g.nodes[n].operands.clone();
                let given = operands.iter().map(|o| self.eval(*o, 0)).collect::<Result<Vec<_>, _>>()?;
                let What::Map(fun) = self.g.nodes[n].what else {
                    let v = match self.g.nodes[n].what {
                        What::Take(_) => self.take(n, 0)?,
                        _ => self.load(n, 0)?,
                    };
                    return self.assign(n, &v.text);
                };
                let v = self.apply(fun, &operands, &given);
                self.assign(n, &v.text)
            }
            Task::Store(i) => {
                let v = self.eval(self.nests.outputs[i].node, 0)?;
                let place = &self.dests[i];
                let text = format!("{}[0] {} {};", place.pointer, if place.adds { "+=" } else { "=" }, v.text);
                self.line(text);
                Ok(())
            }
        }
    }

    /// Sets a scalar that the whole routine may read.
    pub(super) fn assign(&mut self, n: Id, text: &str) -> Result<(), String> {
        let ty = self.c_type(n, false);
        let _ = writeln!(self.declared, "    {ty} v{n};");
        self.line(format!("v{n} = {text};"));
        Ok(())
    }

    pub(super) fn loops(&mut self, axes: &[Axis]) {
        for a in axes {
            self.open(format!("for (int x{a} = 0; x{a} < {}; x{a}++)", self.lay.sizes[*a]));
            self.index.insert(*a, format!("x{a}"));
        }
    }

    pub(super) fn end_loops(&mut self, axes: &[Axis]) {
        for a in axes {
            self.index.remove(a);
            self.close();
        }
    }

    pub(super) fn alone(&mut self, n: Id) -> Result<(), String> {
        let node = self.g.nodes[n].clone();
        let to = self.array(n)?;
        match node.what {
            What::Cumsum(axis) => {
                let others: Vec<Axis> = node.axes.iter().copied().filter(|a| *a != axis).collect();
                self.operations += self.g.elements(&node.axes);
                self.loops(&others);
                self.line("real run = 0;");
                self.loops(&[axis]);
                let v = self.eval(node.operands[0], 0)?;
                let b = self.offset(&to.layout, &node.axes, &self.index)?;
                self.line(format!("run += {};", v.text));
                self.line(format!("{}[{b}] = run;", to.pointer));
                self.end_loops(&[axis]);
                self.end_loops(&others);
                Ok(())
            }
            What::Solve { first, second, iterations, tolerance } => {
                let (matrix, right) = (node.operands[0], node.operands[1]);
                let size = self.lay.sizes[second];
                self.operations += 2 * size * size * iterations;
                let dense = self.memory.take(size * size);
                let work = self.memory.take(5 * size);
                self.open("");
                self.loops(&[first, second]);
                let v = self.eval(matrix, 0)?;
                self.line(format!("m[{dense} + x{first} * {size} + x{second}] = {};", v.text));
                self.end_loops(&[first, second]);
                self.loops(&[second]);
                let v = self.eval(right, 0)?;
                self.line(format!("m[{work} + x{second}] = {};", v.text));
                self.end_loops(&[second]);
                let tolerance = number(f64::from_bits(tolerance));
                self.line(format!("fwp_solve({size}, m + {dense}, m + {work}, {iterations}, {tolerance});"));
                self.loops(&[second]);
                let at = self.offset(&to.layout, &node.axes, &self.index)?;
                self.line(format!("{}[{at}] = m[{work} + {size} + x{second}];", to.pointer));
                self.end_loops(&[second]);
                self.close();
                Ok(())
            }
            _ => Err("a node has no loop of its own".into()),
        }
    }
}
