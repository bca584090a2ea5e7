//! Length-delimited protobuf by the `prometheus` crate's encoder.
//!
//! The crate's messages have no creation times. They are protobuf messages all the same, so the
//! fields ride along as "unknown" ones, under the numbers of Prometheus' own `metrics.proto`.

use chrono::{DateTime, Utc};
use prometheus::{Encoder, ProtobufEncoder, proto};

use super::{Family, Kind, Sample, Value};

/// `io.prometheus.client.Counter.created_timestamp`.
const COUNTER_CREATED_FIELD: u32 = 3;
/// `io.prometheus.client.Histogram.created_timestamp`.
const HISTOGRAM_CREATED_FIELD: u32 = 15;

pub(super) fn write(families: &[Family]) -> Vec<u8> {
    let mut out = Vec::new();
    for family in families {
        let metrics: Vec<proto::Metric> = family.writable().map(|sample| metric(family.kind, sample)).collect();
        if metrics.is_empty() {
            continue;
        }
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
        message.set_metric(metrics);
        ProtobufEncoder::new()
            .encode(&[message], &mut out)
            .expect("a family with a name and a sample is encoded, and a Vec takes every byte");
    }
    out
}

fn metric(kind: Kind, sample: &Sample) -> proto::Metric {
    let mut metric = proto::Metric::from_label(sample.labels.iter().map(|(name, value)| pair(name, value)).collect());
    match &sample.value {
        Value::Number(number) => set_number(&mut metric, kind, *number, sample.created),
        #[expect(clippy::cast_precision_loss, reason = "the format has a double for it")]
        Value::Count(count) => set_number(&mut metric, kind, *count as f64, sample.created),
        Value::Histogram { buckets, sum, count } => {
            let mut histogram = proto::Histogram::default();
            histogram.set_sample_count(*count);
            histogram.set_sample_sum(*sum);
            histogram.set_bucket(buckets.iter().map(|(bound, cumulative)| bucket(*bound, *cumulative)).collect());
            if let Some(at) = sample.created {
                let unknown = histogram.special_fields.mut_unknown_fields();
                unknown.add_length_delimited(HISTOGRAM_CREATED_FIELD, timestamp(at));
            }
            metric.set_histogram(histogram);
        }
    }
    metric
}

fn set_number(metric: &mut proto::Metric, kind: Kind, number: f64, created: Option<DateTime<Utc>>) {
    if kind == Kind::Gauge {
        let mut gauge = proto::Gauge::default();
        gauge.set_value(number);
        metric.set_gauge(gauge);
        return;
    }
    let mut counter = proto::Counter::default();
    counter.set_value(number);
    if let Some(at) = created {
        counter.special_fields.mut_unknown_fields().add_length_delimited(COUNTER_CREATED_FIELD, timestamp(at));
    }
    metric.set_counter(counter);
}

fn pair(name: &str, value: &str) -> proto::LabelPair {
    let mut pair = proto::LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

fn bucket(bound: f64, cumulative: u64) -> proto::Bucket {
    let mut bucket = proto::Bucket::default();
    bucket.set_upper_bound(bound);
    bucket.set_cumulative_count(cumulative);
    bucket
}

/// The body of a `google.protobuf.Timestamp`: field 1 the whole seconds (downwards), field 2 the
/// nanoseconds since then.
fn timestamp(at: DateTime<Utc>) -> Vec<u8> {
    // chrono tells a leap second by a number of nanoseconds that the message does not allow.
    let nanos = at.timestamp_subsec_nanos().min(999_999_999);
    let mut bytes = vec![1 << 3];
    push_varint(&mut bytes, at.timestamp().cast_unsigned());
    if nanos > 0 {
        bytes.push(2 << 3);
        push_varint(&mut bytes, u64::from(nanos));
    }
    bytes
}

fn push_varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push((number & 0x7f) as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_seconds_and_nanoseconds() {
        let at = |seconds, nanos| timestamp(DateTime::from_timestamp(seconds, nanos).unwrap());
        assert_eq!(at(0, 0), [0x08, 0]);
        assert_eq!(at(300, 5), [0x08, 0xac, 0x02, 0x10, 5]);
        // -1 s is the ten bytes of 2^64 - 1, as protobuf has it for a negative int64.
        assert_eq!(at(-1, 0), [0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1]);
        assert_eq!(at(59, 1_999_999_999), at(59, 999_999_999));
    }
}
