//! TensorBoard events, through `tensorboard-rs`.
//!
//! Only its `FileWriter` is used, with summaries built here: its own histograms, texts and hyper-parameters are not written yet, and its images have their sides exchanged.
//! It panics where a write fails, so every use of it is caught; after the first one nothing of it is touched again, not even dropped.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use protobuf::well_known_types::Value as ProtoValue;
use protobuf::{Message as _, RepeatedField};
use tensorboard_proto::api::Status;
use tensorboard_proto::event::{Event, SessionLog, SessionLog_SessionStatus};
use tensorboard_proto::plugin_hparams::{HParamsPluginData, SessionEndInfo, SessionStartInfo};
use tensorboard_proto::summary::{
    HistogramProto, Summary, Summary_Image, Summary_Value, SummaryMetadata, SummaryMetadata_PluginData,
};
use tensorboard_proto::tensor::TensorProto;
use tensorboard_proto::tensor_shape::{TensorShapeProto, TensorShapeProto_Dim};
use tensorboard_proto::types::DataType;
use tensorboard_rs::summary_writer::FileWriter;

use super::image::png_of_matrix;
use super::now;

/// The number of buckets of a histogram: TensorBoard shows 30 unless told otherwise.
const BUCKETS: usize = 30;

/// A value in the table of hyper-parameters.
#[derive(Debug, Clone, PartialEq)]
pub enum HparamValue {
    /// A number.
    Number(f64),
    /// A text.
    Text(String),
    /// Yes or no.
    Flag(bool),
}

/// The one writer of this run.
pub(super) struct Events {
    writer: FileWriter,
    folder: PathBuf,
    has_hparams: bool,
}

impl Events {
    /// Opens a new file in `folder`.
    ///
    /// A resumed run says that what an earlier file holds beyond the checkpoint is void.
    pub(super) fn open(folder: &Path, resumed_at: Option<u64>) -> Result<Self, String> {
        quiet_writer();
        std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        wait_for_a_free_name(folder);
        let writer = caught(|| FileWriter::new(folder))?;
        let mut events = Self { writer, folder: folder.to_owned(), has_hparams: false };
        if let Some(step) = resumed_at {
            let mut log = SessionLog::new();
            log.set_status(SessionLog_SessionStatus::START);
            let mut event = Event::new();
            event.set_session_log(log);
            // Points at this step and later are dropped by the reader; the checkpoint's own stay.
            caught(|| events.writer.add_event(&event, position(step + 1)))?;
        }
        Ok(events)
    }

    pub(super) fn scalars(&mut self, step: u64, values: &[(String, f64)]) -> Result<(), String> {
        let values = values.iter().map(|(tag, number)| {
            let mut value = Summary_Value::new();
            value.set_tag(tag.clone());
            value.set_simple_value(*number as f32);
            value
        });
        self.add(values.collect(), step)
    }

    pub(super) fn text(&mut self, name: &str, text: &str) -> Result<(), String> {
        let mut tensor = TensorProto::new();
        tensor.set_dtype(DataType::DT_STRING);
        tensor.set_string_val(RepeatedField::from_vec(vec![text.as_bytes().to_vec()]));
        let mut dim = TensorShapeProto_Dim::new();
        dim.set_size(1);
        let mut shape = TensorShapeProto::new();
        shape.set_dim(RepeatedField::from_vec(vec![dim]));
        tensor.set_tensor_shape(shape);
        let mut value = Summary_Value::new();
        value.set_tag(format!("{name}/text_summary"));
        value.set_metadata(metadata("text", Vec::new()));
        value.set_tensor(tensor);
        self.add(vec![value], 0)
    }

    pub(super) fn hparams(&mut self, values: &[(String, HparamValue)]) -> Result<(), String> {
        let mut map = HashMap::new();
        for (name, given) in values {
            let mut value = ProtoValue::new();
            match given {
                HparamValue::Number(number) => value.set_number_value(*number),
                HparamValue::Text(text) => value.set_string_value(text.clone()),
                HparamValue::Flag(flag) => value.set_bool_value(*flag),
            }
            map.insert(name.clone(), value);
        }
        let mut start = SessionStartInfo::new();
        start.set_hparams(map);
        start.set_start_time_secs(now());
        let mut data = HParamsPluginData::new();
        data.set_session_start_info(start);
        self.has_hparams = true;
        self.plugin_data("_hparams_/session_start_info", &data)
    }

    pub(super) fn histogram(&mut self, tag: &str, step: u64, values: &[f32]) -> Result<(), String> {
        let Some(histogram) = histogram(values) else { return Ok(()) };
        let mut value = Summary_Value::new();
        value.set_tag(tag.to_owned());
        value.set_histo(histogram);
        self.add(vec![value], step)
    }

    pub(super) fn image(&mut self, tag: &str, step: u64, rows: usize, values: &[f32]) -> Result<(), String> {
        let (width, height, png) = png_of_matrix(rows, values)?;
        let mut image = Summary_Image::new();
        image.set_width(i32::try_from(width).map_err(|e| e.to_string())?);
        image.set_height(i32::try_from(height).map_err(|e| e.to_string())?);
        image.set_colorspace(3);
        image.set_encoded_image_string(png);
        let mut value = Summary_Value::new();
        value.set_tag(tag.to_owned());
        value.set_image(image);
        self.add(vec![value], step)
    }

    /// Records the end of the session in the table of hyper-parameters.
    pub(super) fn finish(&mut self, succeeded: bool) -> Result<(), String> {
        if !self.has_hparams {
            return Ok(());
        }
        let mut end = SessionEndInfo::new();
        end.set_status(if succeeded { Status::STATUS_SUCCESS } else { Status::STATUS_FAILURE });
        end.set_end_time_secs(now());
        let mut data = HParamsPluginData::new();
        data.set_session_end_info(end);
        self.plugin_data("_hparams_/session_end_info", &data)
    }

    pub(super) fn flush(&mut self) -> Result<(), String> {
        if !self.folder.is_dir() {
            return Err(format!("{}: the folder was removed", self.folder.display()));
        }
        caught(|| self.writer.flush())
    }

    /// Writes what is left and waits for the writer's thread.
    pub(super) fn close(self) {
        let _ = caught(move || drop(self.writer));
    }

    /// Leaves the writer behind: dropping one whose thread is dead panics.
    pub(super) fn abandon(self) {
        std::mem::forget(self.writer);
    }

    fn add(&mut self, values: Vec<Summary_Value>, step: u64) -> Result<(), String> {
        let mut summary = Summary::new();
        summary.set_value(RepeatedField::from_vec(values));
        caught(|| self.writer.add_summary(summary, position(step)))
    }

    fn plugin_data(&mut self, tag: &str, data: &HParamsPluginData) -> Result<(), String> {
        let content = data.write_to_bytes().map_err(|e| e.to_string())?;
        // A reader wants a value of some kind beside the metadata.
        let mut tensor = TensorProto::new();
        tensor.set_dtype(DataType::DT_FLOAT);
        tensor.set_float_val(vec![0.]);
        tensor.set_tensor_shape(TensorShapeProto::new());
        let mut value = Summary_Value::new();
        value.set_tag(tag.to_owned());
        value.set_metadata(metadata("hparams", content));
        value.set_tensor(tensor);
        self.add(vec![value], 0)
    }
}

fn metadata(plugin: &str, content: Vec<u8>) -> SummaryMetadata {
    let mut data = SummaryMetadata_PluginData::new();
    data.set_plugin_name(plugin.to_owned());
    data.set_content(content);
    let mut metadata = SummaryMetadata::new();
    metadata.set_plugin_data(data);
    metadata
}

/// Equal buckets between the smallest and the largest finite value; `None` without one.
///
/// A bucket is named by its right edge; the first begins at the smallest value.
fn histogram(values: &[f32]) -> Option<HistogramProto> {
    let finite: Vec<f64> = values.iter().filter(|v| v.is_finite()).map(|&v| f64::from(v)).collect();
    let low = finite.iter().copied().reduce(f64::min)?;
    let high = finite.iter().copied().reduce(f64::max)?;
    let buckets = if low == high { 1 } else { BUCKETS };
    let width = (high - low) / buckets as f64;
    let limits = (1..=buckets).map(|i| if i == buckets { high } else { low + width * i as f64 });
    let mut counts = vec![0f64; buckets];
    for value in &finite {
        let at = if width > 0. { ((value - low) / width) as usize } else { 0 };
        counts[at.min(buckets - 1)] += 1.;
    }
    let mut histogram = HistogramProto::new();
    histogram.set_min(low);
    histogram.set_max(high);
    histogram.set_num(finite.len() as f64);
    histogram.set_sum(finite.iter().sum());
    histogram.set_sum_squares(finite.iter().map(|v| v * v).sum());
    histogram.set_bucket_limit(limits.collect());
    histogram.set_bucket(counts);
    Some(histogram)
}

fn position(step: u64) -> usize {
    usize::try_from(step).unwrap_or(usize::MAX)
}

/// Runs something of the writer; its panic becomes an error.
fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        std::mem::forget(payload);
        "the writer of events ended, the disk may be full".to_owned()
    })
}

/// Keeps the panics of the writer, which are expected and caught, off stderr.
fn quiet_writer() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let other = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !info.location().is_some_and(|at| at.file().contains("tensorboard-rs")) {
                other(info);
            }
        }));
    });
}

/// The writer names its file by the second: a second one in the same second and process would cut
/// the first to nothing. Waits until the name is free.
fn wait_for_a_free_name(folder: &Path) {
    static USED: Mutex<Option<HashMap<PathBuf, u64>>> = Mutex::new(None);
    let key = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let seconds = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    loop {
        let mut guard = USED.lock().unwrap_or_else(PoisonError::into_inner);
        let used = guard.get_or_insert_default();
        let second = seconds();
        let prefix = format!("events.out.tfevents.{second:010}.");
        let there = std::fs::read_dir(folder)
            .is_ok_and(|entries| entries.flatten().any(|e| e.file_name().to_string_lossy().starts_with(&prefix)));
        if !there && used.get(&key).is_none_or(|&last| second > last) {
            // The writer may read the clock just after the next second began.
            used.insert(key, second + 1);
            return;
        }
        drop(guard);
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// The masked CRC-32C of the record format, bit by bit.
    fn masked_crc(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for &byte in bytes {
            crc ^= u32::from(byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 };
            }
        }
        let crc = !crc;
        crc.rotate_right(15).wrapping_add(0xA282_EAD8)
    }

    /// Reads one file of records: length, its checksum, data, their checksum.
    fn read_file(path: &Path) -> Vec<Event> {
        let bytes = std::fs::read(path).unwrap();
        let mut rest = &bytes[..];
        let mut events = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(u32::from_le_bytes(rest[8..12].try_into().unwrap()), masked_crc(&rest[..8]));
            let data = &rest[12..12 + length];
            let sum = u32::from_le_bytes(rest[12 + length..16 + length].try_into().unwrap());
            assert_eq!(sum, masked_crc(data));
            events.push(Event::parse_from_bytes(data).unwrap());
            rest = &rest[16 + length..];
        }
        events
    }

    /// All events of all files of a folder, in the order of their names.
    pub(crate) fn read_folder(folder: &Path) -> Vec<Event> {
        let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        files.iter().flat_map(|file| read_file(file)).collect()
    }

    #[test]
    fn the_check_sum_is_crc_32c() {
        let unmask = |m: u32| m.wrapping_sub(0xA282_EAD8).rotate_left(15);
        assert_eq!(unmask(masked_crc(b"123456789")), 0xE306_9283);
    }

    #[test]
    fn every_kind_of_summary_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = Events::open(folder.path(), None).unwrap();
        events.scalars(3, &[("train/loss".into(), 0.5), ("train/lr".into(), f64::NAN)]).unwrap();
        events.text("recipe", "title = \"x\"").unwrap();
        events
            .hparams(&[
                ("lr".into(), HparamValue::Number(0.1)),
                ("rule".into(), HparamValue::Text("delta".into())),
                ("amsgrad".into(), HparamValue::Flag(false)),
            ])
            .unwrap();
        events.histogram("fwp/w", 4, &[0., 1., 1., 3., f32::INFINITY]).unwrap();
        events.histogram("fwp/none", 4, &[f32::NAN]).unwrap();
        events.image("fwp/image", 5, 2, &[0., 1., 2., 3., 4., 5.]).unwrap();
        events.finish(true).unwrap();
        events.flush().unwrap();
        events.close();

        let read = read_folder(folder.path());
        assert_eq!(read[0].get_file_version(), "brain.Event:2");
        let mut values = BTreeMap::new();
        for event in &read[1..] {
            for value in event.get_summary().get_value() {
                values.insert(value.get_tag().to_owned(), (event.get_step(), value.clone()));
            }
        }
        assert_eq!(values["train/loss"].0, 3);
        assert_eq!(values["train/loss"].1.get_simple_value(), 0.5);
        assert!(values["train/lr"].1.get_simple_value().is_nan());
        let text = &values["recipe/text_summary"].1;
        assert_eq!(text.get_metadata().get_plugin_data().get_plugin_name(), "text");
        assert_eq!(text.get_tensor().get_string_val()[0], b"title = \"x\"");
        let start = values["_hparams_/session_start_info"].1.get_metadata().get_plugin_data();
        let start = HParamsPluginData::parse_from_bytes(start.get_content()).unwrap();
        let hparams = start.get_session_start_info().get_hparams();
        assert_eq!(hparams["lr"].get_number_value(), 0.1);
        assert_eq!(hparams["rule"].get_string_value(), "delta");
        assert!(hparams["amsgrad"].has_bool_value());
        assert!(values.contains_key("_hparams_/session_end_info"));
        let histogram = values["fwp/w"].1.get_histo();
        assert_eq!((histogram.get_min(), histogram.get_max(), histogram.get_num()), (0., 3., 4.));
        assert_eq!((histogram.get_sum(), histogram.get_sum_squares()), (5., 11.));
        assert_eq!(histogram.get_bucket().iter().sum::<f64>(), 4.);
        assert_eq!(histogram.get_bucket().len(), histogram.get_bucket_limit().len());
        assert_eq!(histogram.get_bucket_limit().last(), Some(&3.));
        assert!(!values.contains_key("fwp/none"));
        let image = values["fwp/image"].1.get_image();
        assert_eq!((image.get_width(), image.get_height(), image.get_colorspace()), (3, 2, 3));
    }

    #[test]
    fn a_constant_has_a_histogram_of_one_bucket() {
        let histogram = histogram(&[2., 2.]).unwrap();
        assert_eq!((histogram.get_bucket(), histogram.get_bucket_limit()), (&[2.][..], &[2.][..]));
    }

    #[test]
    fn a_second_writer_in_the_same_second_destroys_nothing_and_voids_later_points() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = Events::open(folder.path(), None).unwrap();
        first.scalars(7, &[("a".into(), 1.)]).unwrap();
        first.close();
        let mut second = Events::open(folder.path(), Some(5)).unwrap();
        second.scalars(6, &[("a".into(), 2.)]).unwrap();
        second.close();
        let read = read_folder(folder.path());
        assert_eq!(read.iter().filter(|e| e.has_summary()).count(), 2);
        let session = read.iter().find(|e| e.has_session_log()).unwrap();
        assert_eq!(session.get_session_log().get_status(), SessionLog_SessionStatus::START);
        assert_eq!(session.get_step(), 6);
    }
}
