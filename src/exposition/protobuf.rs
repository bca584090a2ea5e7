//! Length-delimited `io.prometheus.client.MetricFamily` messages, written straight from the families.
//!
//! A message stands behind its length, so lengths are counted before anything is written. The fields are those that
//! the `prometheus` crate's encoder writes, in its order (a test compares), and the creation times, which its messages
//! do not have. The numbers are those of Prometheus' `metrics.proto`.

use chrono::{DateTime, Utc};

use super::family::{Family, Kind, Sample, Value};

/// The kinds of fields that are needed here.
const VARINT: u8 = 0;
const DOUBLE: u8 = 1;
const BYTES: u8 = 2;

/// Bytes of a double with its tag.
const DOUBLE_LEN: usize = 9;

pub(super) fn write(families: &[Family]) -> Vec<u8> {
    let mut out = Vec::new();
    // the lengths of a family's metrics, as they are needed before the first
    let mut lengths: Vec<Lengths> = Vec::new();
    for family in families {
        lengths.clear();
        lengths.extend(family.writable().map(|sample| Lengths::of(family.kind, sample)));
        if lengths.is_empty() {
            continue;
        }
        let help = if family.help.is_empty() { 0 } else { bytes_len(family.help.len()) };
        let metrics: usize = lengths.iter().map(|lengths| bytes_len(lengths.metric)).sum();
        let length = bytes_len(family.name.len()) + help + 2 + metrics;
        out.reserve(varint_len(length as u64) + length);
        push_varint(&mut out, length as u64);
        push_bytes(&mut out, 1, family.name.as_bytes());
        if !family.help.is_empty() {
            push_bytes(&mut out, 2, family.help.as_bytes());
        }
        out.push(tag(3, VARINT));
        out.push(match family.kind {
            Kind::Counter => 0,
            Kind::Gauge => 1,
            Kind::Histogram => 4,
        });
        for (sample, lengths) in family.writable().zip(&lengths) {
            push_head(&mut out, 4, lengths.metric);
            push_metric(&mut out, family.kind, sample, lengths);
        }
    }
    out
}

/// How long a metric and its parts are, without their own tag and length.
struct Lengths {
    metric: usize,
    /// The counter, gauge or histogram in it.
    value: usize,
    /// When it was created, if that is told.
    created: Option<Timestamp>,
}

impl Lengths {
    fn of(kind: Kind, sample: &Sample) -> Self {
        let created = sample.created.filter(|_| kind != Kind::Gauge).map(Timestamp::of);
        let counted = match &sample.value {
            Value::Number(_) | Value::Count(_) => DOUBLE_LEN,
            Value::Histogram { buckets, count, .. } => {
                let buckets = buckets.iter().map(|(_, cumulative)| bytes_len(bucket_len(*cumulative)));
                1 + varint_len(*count) + DOUBLE_LEN + buckets.sum::<usize>()
            }
        };
        let value = counted + created.as_ref().map_or(0, |created| bytes_len(created.len()));
        let labels = sample.labels.iter().map(|(name, value)| bytes_len(label_len(name, value)));
        Self { metric: labels.sum::<usize>() + bytes_len(value), value, created }
    }
}

fn push_metric(out: &mut Vec<u8>, kind: Kind, sample: &Sample, lengths: &Lengths) {
    for (name, value) in &sample.labels {
        push_head(out, 1, label_len(name, value));
        push_bytes(out, 1, name.as_bytes());
        push_bytes(out, 2, value.as_bytes());
    }
    let (field, created_field) = match kind {
        Kind::Gauge => (2, 0),
        Kind::Counter => (3, 3),
        Kind::Histogram => (7, 15),
    };
    push_head(out, field, lengths.value);
    match &sample.value {
        Value::Number(number) => push_double(out, 1, *number),
        #[expect(clippy::cast_precision_loss, reason = "the format has a double for it")]
        Value::Count(count) => push_double(out, 1, *count as f64),
        Value::Histogram { buckets, sum, count } => {
            out.push(tag(1, VARINT));
            push_varint(out, *count);
            push_double(out, 2, *sum);
            for (bound, cumulative) in buckets {
                push_head(out, 3, bucket_len(*cumulative));
                out.push(tag(1, VARINT));
                push_varint(out, *cumulative);
                push_double(out, 2, *bound);
            }
        }
    }
    if let Some(created) = &lengths.created {
        push_head(out, created_field, created.len());
        created.push(out);
    }
}

/// A `google.protobuf.Timestamp`: field 1 the whole seconds (downwards), field 2 the nanoseconds since then.
struct Timestamp {
    seconds: u64,
    nanos: u32,
}

impl Timestamp {
    fn of(at: DateTime<Utc>) -> Self {
        // chrono tells a leap second by a number of nanoseconds that the message does not allow
        Self { seconds: at.timestamp().cast_unsigned(), nanos: at.timestamp_subsec_nanos().min(999_999_999) }
    }

    fn len(&self) -> usize {
        let nanos = if self.nanos > 0 { 1 + varint_len(self.nanos.into()) } else { 0 };
        1 + varint_len(self.seconds) + nanos
    }

    fn push(&self, out: &mut Vec<u8>) {
        out.push(tag(1, VARINT));
        push_varint(out, self.seconds);
        if self.nanos > 0 {
            out.push(tag(2, VARINT));
            push_varint(out, self.nanos.into());
        }
    }
}

fn label_len(name: &str, value: &str) -> usize {
    bytes_len(name.len()) + bytes_len(value.len())
}

fn bucket_len(cumulative: u64) -> usize {
    1 + varint_len(cumulative) + DOUBLE_LEN
}

/// Of a field of `length` bytes, with its tag and its length.
fn bytes_len(length: usize) -> usize {
    1 + varint_len(length as u64) + length
}

fn varint_len(number: u64) -> usize {
    // seven bits a byte, and one byte for 0
    (64 - (number | 1).leading_zeros() as usize).div_ceil(7)
}

/// A field's number (up to 15, so that it takes one byte) and its kind.
const fn tag(field: u8, kind: u8) -> u8 {
    field << 3 | kind
}

fn push_head(out: &mut Vec<u8>, field: u8, length: usize) {
    out.push(tag(field, BYTES));
    push_varint(out, length as u64);
}

fn push_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    push_head(out, field, bytes.len());
    out.extend_from_slice(bytes);
}

fn push_double(out: &mut Vec<u8>, field: u8, number: f64) {
    out.push(tag(field, DOUBLE));
    out.extend_from_slice(&number.to_le_bytes());
}

fn push_varint(out: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push((number & 0x7f) as u8);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prometheus::{Encoder, ProtobufEncoder, proto};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn timestamps_are_seconds_and_nanoseconds() {
        let at = |seconds, nanos| {
            let (timestamp, mut bytes) = (Timestamp::of(DateTime::from_timestamp(seconds, nanos).unwrap()), Vec::new());
            timestamp.push(&mut bytes);
            assert_eq!(bytes.len(), timestamp.len());
            bytes
        };
        assert_eq!(at(0, 0), [0x08, 0]);
        assert_eq!(at(300, 5), [0x08, 0xac, 0x02, 0x10, 5]);
        // -1 s is the ten bytes of 2^64 - 1, as protobuf has it for a negative int64.
        assert_eq!(at(-1, 0), [0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1]);
        assert_eq!(at(59, 1_999_999_999), at(59, 999_999_999));
    }

    /// The family as the crate's own encoder writes it, creation times as fields that it does not know.
    fn by_the_crate(family: &Family) -> Vec<u8> {
        let metric = |sample: &Sample| {
            let pair = |(name, value): &(&'static str, Arc<str>)| {
                let mut pair = proto::LabelPair::default();
                pair.set_name((*name).to_owned());
                pair.set_value(value.to_string());
                pair
            };
            let mut metric = proto::Metric::from_label(sample.labels.iter().map(pair).collect());
            let created = sample.created.map(|at| {
                let mut bytes = Vec::new();
                Timestamp::of(at).push(&mut bytes);
                bytes
            });
            let number = match &sample.value {
                Value::Number(number) => *number,
                #[allow(clippy::cast_precision_loss)]
                Value::Count(count) => *count as f64,
                Value::Histogram { .. } => 0.0,
            };
            match (family.kind, &sample.value) {
                (Kind::Counter, _) => {
                    let mut counter = proto::Counter::default();
                    counter.set_value(number);
                    let unknown = counter.special_fields.mut_unknown_fields();
                    if let Some(created) = created {
                        unknown.add_length_delimited(3, created);
                    }
                    metric.set_counter(counter);
                }
                (Kind::Histogram, Value::Histogram { buckets, sum, count }) => {
                    let mut histogram = proto::Histogram::default();
                    histogram.set_sample_count(*count);
                    histogram.set_sample_sum(*sum);
                    let bucket = |(bound, cumulative): &(f64, u64)| {
                        let mut bucket = proto::Bucket::default();
                        bucket.set_upper_bound(*bound);
                        bucket.set_cumulative_count(*cumulative);
                        bucket
                    };
                    histogram.set_bucket(buckets.iter().map(bucket).collect());
                    let unknown = histogram.special_fields.mut_unknown_fields();
                    if let Some(created) = created {
                        unknown.add_length_delimited(15, created);
                    }
                    metric.set_histogram(histogram);
                }
                _ => {
                    let mut gauge = proto::Gauge::default();
                    gauge.set_value(number);
                    metric.set_gauge(gauge);
                }
            }
            metric
        };
        let mut message = proto::MetricFamily::default();
        message.set_name(family.name.to_owned());
        if !family.help.is_empty() {
            message.set_help(family.help.to_owned());
        }
        message.set_field_type(match family.kind {
            Kind::Counter => proto::MetricType::COUNTER,
            Kind::Gauge => proto::MetricType::GAUGE,
            Kind::Histogram => proto::MetricType::HISTOGRAM,
        });
        message.set_metric(family.samples.iter().map(metric).collect());
        let mut bytes = Vec::new();
        ProtobufEncoder::new().encode(&[message], &mut bytes).unwrap();
        bytes
    }

    fn sample(kind: Kind) -> impl Strategy<Value = Sample> {
        let value = match kind {
            Kind::Histogram => {
                (proptest::collection::vec((any::<f64>(), any::<u64>()), 0..20), any::<f64>(), any::<u64>())
                    .prop_map(|(buckets, sum, count)| Value::Histogram { buckets, sum, count })
                    .boxed()
            }
            _ => prop_oneof![any::<f64>().prop_map(Value::Number), any::<u64>().prop_map(Value::Count)].boxed(),
        };
        let label = (prop_oneof![Just("source"), Just("a_rather_long_name_of_a_label")], ".{0,200}");
        let labels =
            proptest::collection::vec(label.prop_map(|(name, value)| (name, Arc::<str>::from(value.as_str()))), 0..6);
        let created = proptest::option::of((-62_135_596_800_i64..253_402_300_799, 0_u32..2_000_000_000));
        let at = |(seconds, nanos): (i64, u32)| {
            DateTime::from_timestamp(seconds, if seconds % 60 == 59 { nanos } else { nanos % 1_000_000_000 })
        };
        (labels, value, created).prop_map(move |(labels, value, created)| Sample {
            labels,
            value,
            created: created.and_then(at),
        })
    }

    fn family() -> impl Strategy<Value = Family> {
        let help = prop_oneof![Just(""), Just("Events.")];
        (prop_oneof![Just(Kind::Counter), Just(Kind::Gauge), Just(Kind::Histogram)], help).prop_flat_map(
            |(kind, help)| {
                proptest::collection::vec(sample(kind), 1..20).prop_map(move |samples| Family {
                    name: "audit_events_total",
                    help,
                    kind,
                    samples,
                })
            },
        )
    }

    proptest! {
        #[test]
        fn every_byte_is_the_one_that_the_crate_s_encoder_writes(family in family()) {
            prop_assert_eq!(write(std::slice::from_ref(&family)), by_the_crate(&family));
        }

        #[test]
        fn a_varint_is_as_long_as_was_counted(number: u64) {
            let mut bytes = Vec::new();
            push_varint(&mut bytes, number);
            prop_assert_eq!(bytes.len(), varint_len(number));
        }
    }
}
