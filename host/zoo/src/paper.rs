//! The paper that a recipe cites: what the zoo is ordered by.

/// A paper: who, when, and where to find it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Paper {
    /// The year; 0 where none is said.
    pub year: u32,
    /// The number at arXiv, such as `2102.11174`.
    pub arxiv: Option<String>,
    /// Authors and year as the recipe has them, or the whole citation where it has no year.
    pub who: String,
}

impl Paper {
    /// The first paper of a citation such as `Schlag, Irie, Schmidhuber 2021, arXiv 2102.11174, section 6.1.2`.
    ///
    /// Semicolons divide papers, and a few words with a colon may say what a paper is cited for: `the task: ...`.
    pub fn of(cite: Option<&str>) -> Paper {
        let papers = cite.unwrap_or("no source").split(';').map(|part| {
            let part = part.trim();
            let purpose = part.split_once(": ").filter(|(words, _)| words.starts_with("the ") && words.len() < 24);
            Paper::one(purpose.map_or(part, |(_, rest)| rest.trim()))
        });
        let papers: Vec<Paper> = papers.collect();
        let found = papers.iter().find(|p| p.year > 0 || p.arxiv.is_some()).or(papers.first());
        found.cloned().unwrap_or(Paper { year: 0, arxiv: None, who: String::new() })
    }

    /// The paper of a citation of one.
    fn one(cite: &str) -> Paper {
        let arxiv = cite.split_once("arXiv").map(|(_, rest)| rest.trim_start_matches([' ', ':']));
        let arxiv = arxiv.map(|rest| rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect::<String>());
        let arxiv = arxiv.map(|id| id.trim_end_matches('.').to_string()).filter(|id| !id.is_empty());
        // Before the number at arXiv, which may look like a year.
        let names = cite.split("arXiv").next().unwrap_or(cite);
        let is_digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
        let year = names.char_indices().find_map(|(at, _)| {
            let word = names.get(at..at + 4)?;
            let alone = !is_digit(names[..at].chars().next_back()) && !is_digit(names[at + 4..].chars().next());
            let year = word.parse::<u32>().ok().filter(|y| alone && (1900..2100).contains(y))?;
            Some((at + 4, year))
        });
        match year {
            Some((end, year)) => Paper { year, arxiv, who: cite[..end].trim().into() },
            None => Paper { year: 0, arxiv, who: cite.into() },
        }
    }

    /// Whether two citations are of the same paper: by number, else by authors and year.
    pub fn same(&self, other: &Paper) -> bool {
        match (&self.arxiv, &other.arxiv) {
            (Some(a), Some(b)) => a == b,
            _ => self.who == other.who,
        }
    }

    /// One line: `Schlag, Irie, Schmidhuber 2021, arXiv 2102.11174`.
    pub fn title(&self) -> String {
        match &self.arxiv {
            Some(id) if !self.who.contains(id) => format!("{}, arXiv {id}", self.who),
            _ => self.who.clone(),
        }
    }
}

/// Things with their papers, grouped: papers by year and number, things in their own order.
pub fn grouped<T>(things: Vec<(Paper, T)>) -> Vec<(Paper, Vec<T>)> {
    let mut groups: Vec<(Paper, Vec<T>)> = Vec::new();
    for (paper, thing) in things {
        match groups.iter_mut().find(|(p, _)| p.same(&paper)) {
            Some((_, group)) => group.push(thing),
            None => groups.push((paper, vec![thing])),
        }
    }
    groups.sort_by(|(a, _), (b, _)| a.cmp(b));
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paper_is_read_from_the_citation() {
        for (cite, year, arxiv, who) in [
            (
                "Schlag, Irie, Schmidhuber 2021, arXiv 2102.11174, section 6.1.2",
                2021,
                Some("2102.11174"),
                "Schlag, Irie, Schmidhuber 2021",
            ),
            (
                "Schlag 2021, arXiv 2102.11174, 6.1; the model: Katharopoulos et al. 2020, arXiv 2006.16236",
                2021,
                Some("2102.11174"),
                "Schlag 2021",
            ),
            (
                "the rules: see the recipes of their own; the task: Arora et al. 2023, arXiv 2312.04927",
                2023,
                Some("2312.04927"),
                "Arora et al. 2023",
            ),
            ("Grazzi et al. (2024), arXiv:2411.12537.", 2024, Some("2411.12537"), "Grazzi et al. (2024"),
            ("Schmidhuber 1992, Neural Computation 4(1)", 1992, None, "Schmidhuber 1992"),
            ("somebody, arXiv 2000.12345", 0, Some("2000.12345"), "somebody, arXiv 2000.12345"),
            ("für 12021 Bäume", 0, None, "für 12021 Bäume"),
        ] {
            let paper = Paper::of(Some(cite));
            assert_eq!((paper.year, paper.arxiv.as_deref(), paper.who.as_str()), (year, arxiv, who), "{cite}");
        }
        assert_eq!(Paper::of(None).title(), "no source");
    }

    #[test]
    fn variants_of_one_paper_stand_together_however_they_cite_it() {
        let cites =
            ["B 2022, arXiv 2200.00001, table 1", "A 2021, arXiv 2100.00001", "B and others 2022, arXiv 2200.00001", "C 2021"];
        let groups = grouped(cites.iter().map(|c| (Paper::of(Some(c)), *c)).collect());
        let sizes: Vec<(&str, usize)> = groups.iter().map(|(p, g)| (p.who.as_str(), g.len())).collect();
        assert_eq!(sizes, [("C 2021", 1), ("A 2021", 1), ("B 2022", 2)]);
    }
}
