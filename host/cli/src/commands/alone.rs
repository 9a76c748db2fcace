//! One rule with an optional feature map, outside of any recipe: what `apply`, `bench` and `check` begin with.

use std::path::PathBuf;

use fwp_sdk::Ask;
use fwp_sdk::build::Dims;
use fwp_sdk::program::Kind;
use serde_json::{Map, Value};

use super::PluginOptions;
use super::plugins::{reference, setting};
use crate::compose::{cannot_describe, checked};
use crate::failure::{Code, Failure};
use crate::plugins::wire::Question;
use crate::plugins::{Asker, Chosen, Refusal};

/// A rule and a map that were found, with their configuration.
pub struct Alone {
    asker: Asker,
    rule: Chosen,
    map: Option<Chosen>,
    rule_config: Map<String, Value>,
    map_config: Map<String, Value>,
}

/// The programs of a rule and its map for certain sizes.
pub struct Programs {
    /// Bytes of the rule's program.
    pub rule: Vec<u8>,
    /// Bytes of the map's program.
    pub map: Option<Vec<u8>>,
    /// What was noticed and stops nothing.
    pub notices: Vec<String>,
    /// The sizes that they are for.
    pub dims: Dims,
}

impl Alone {
    /// Finds the parts.
    ///
    /// `set` holds `KEY=VALUE` of the rule's configuration, or of the map's with `feature_map.` in front.
    ///
    /// # Errors
    /// Parts that are not there, and a setting for a map where none is named.
    pub async fn find(plugins: &PluginOptions, rule: &str, map: Option<&str>, set: &[String]) -> Result<Alone, Failure> {
        let (mut rule_config, mut map_config) = (Map::new(), Map::new());
        for text in set {
            let (key, value) = setting(text)?;
            match key.strip_prefix("feature_map.") {
                Some(key) => map_config.insert(key.into(), value),
                None => rule_config.insert(key.strip_prefix("update_rule.").unwrap_or(&key).into(), value),
            };
        }
        if map.is_none() && !map_config.is_empty() {
            return Err(Failure::new(
                Code::Usage,
                "the command line is wrong",
                "--set feature_map.… configures a feature map and none is named",
                "name one with --feature-map NAME",
            ));
        }
        let asker = plugins.asker();
        let mut catalogue = plugins.catalogue(&asker, None).await?;
        let rule = catalogue.choose(&asker, Kind::UpdateRule, &reference(rule)).await?;
        let map = match map {
            Some(name) => Some(catalogue.choose(&asker, Kind::FeatureMap, &reference(name)).await?),
            None => None,
        };
        Ok(Alone { asker, rule, map, rule_config, map_config })
    }

    /// The name of the rule.
    pub fn name(&self) -> &str {
        &self.rule.info.name
    }

    /// The library of the rule.
    pub fn library(&self) -> String {
        self.rule.library.display().to_string()
    }

    /// Describes both for these sizes; the number of features is the map's.
    ///
    /// # Errors
    /// A part that refuses, or whose program cannot be used.
    pub async fn describe(&self, dims: Dims) -> Result<Programs, Failure> {
        self.programs(dims, false).await
    }

    /// Describes both for these sizes, or with values as long as keys where the rule wants them so.
    ///
    /// # Errors
    /// As [`Alone::describe`], for these sizes.
    pub async fn describe_or_square(&self, dims: Dims) -> Result<Programs, Failure> {
        match self.programs(dims, false).await {
            Ok(programs) => Ok(programs),
            Err(failure) => self.programs(dims, true).await.map_err(|_| failure),
        }
    }

    async fn programs(&self, mut dims: Dims, square: bool) -> Result<Programs, Failure> {
        let mut notices = Vec::new();
        let mut map_bytes = None;
        if let Some(map) = &self.map {
            let bytes = self.ask(map, &self.map_config, Ask::Features { dim: dims.key_raw }).await?;
            dims.key = serde_json::from_slice(&bytes)
                .map_err(|e| cannot_describe(&map.title(), Refusal::new(e.to_string(), "correct the plugin")))?;
            let bytes = self.ask(map, &self.map_config, Ask::Map { dim: dims.key_raw }).await?;
            checked(Kind::FeatureMap, map, &bytes, &mut notices)?;
            map_bytes = Some(bytes);
        }
        if square {
            dims.value = dims.key;
        }
        let rule = self.ask(&self.rule, &self.rule_config, Ask::Rule { dims }).await?;
        checked(Kind::UpdateRule, &self.rule, &rule, &mut notices)?;
        Ok(Programs { rule, map: map_bytes, notices, dims })
    }

    async fn ask(&self, part: &Chosen, config: &Map<String, Value>, ask: Ask) -> Result<Vec<u8>, Failure> {
        let mut job = part.job(config, ask);
        let question = job.questions.pop().unwrap_or(Question::List);
        let answer = self.asker.one(&part.library, question).await?;
        answer.map_err(|r| cannot_describe(&part.title(), r))
    }
}

/// A temporary folder for what the engine reads.
pub struct Folder(tempfile::TempDir);

/// Makes a temporary folder whose name begins so.
///
/// # Errors
/// A disk that takes nothing.
pub fn folder(prefix: &str) -> Result<Folder, Failure> {
    let made = tempfile::Builder::new().prefix(prefix).tempdir();
    made.map(Folder).map_err(|e| crate::failure::io("write", &std::env::temp_dir(), &e))
}

impl Folder {
    /// Writes a file.
    ///
    /// # Errors
    /// A disk that takes nothing.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, Failure> {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).map_err(|e| crate::failure::io("write", &path, &e))?;
        Ok(path)
    }
}
