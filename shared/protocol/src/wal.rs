//! Positions in the write-ahead log, and the identity of a server.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// pg_control's system identifier: the same on a server and on every physical copy of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SystemIdentifier(pub u64);

impl fmt::Display for SystemIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// As text: JSON readers lose digits of numbers beyond 2^53.
impl Serialize for SystemIdentifier {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SystemIdentifier {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map(Self)
            .map_err(serde::de::Error::custom)
    }
}

/// A timeline; a promotion begins the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timeline(pub u32);

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a promotion left a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// The timeline that was left.
    pub timeline: Timeline,
    /// The end of its last record that belongs to the new timeline, too.
    pub at: Lsn,
}

/// Reads a timeline's history file: for each promotion, in their order, a line with the timeline
/// that was left, the position, and the reason, separated by tabs (PostgreSQL's
/// src/backend/access/transam/timeline.c). Lines of another form are comments.
pub fn history(file: &str) -> Vec<Switch> {
    let switch = |line: &str| {
        let mut fields = line.split('\t').map(str::trim);
        Some(Switch {
            timeline: Timeline(fields.next()?.parse().ok()?),
            at: fields.next()?.parse().ok()?,
        })
    };
    file.lines().filter_map(switch).collect()
}

/// A position in the write-ahead log, in bytes from its beginning. Written and read in PostgreSQL's
/// own notation: two hexadecimal halves, such as `0/5A2E4F8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Bytes from `earlier` to here; 0 when it is not earlier.
    pub fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The end of the last record before an insert position, as replay positions are counted.
    ///
    /// At the start of a page the insert position already lies behind the page's header (24 bytes,
    /// 40 at the start of a segment: access/xlog_internal.h), while flush and replay stand before
    /// it. On an idle server, for example after a switch of segments, no replay position would ever
    /// reach the position as it is. No record ends there by itself: the smallest takes 24 bytes,
    /// and of one that began on the page before, no other end lies on the page's start.
    #[must_use]
    pub fn last_record_end(self) -> Self {
        const PAGE_BYTES: u64 = 8192;
        match self.0 % PAGE_BYTES {
            header @ (24 | 40) => Self(self.0 - header),
            _ => self,
        }
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl std::str::FromStr for Lsn {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let half = |digits: &str| u32::from_str_radix(digits, 16).ok().map(u64::from);
        text.split_once('/')
            .and_then(|(high, low)| Some(Self(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| format!("{text:?} is not an LSN"))
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Who a server is; compared before anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The same on every physical copy.
    pub system_identifier: SystemIdentifier,
    /// The timeline that is written or followed now.
    pub timeline: Timeline,
    /// server_version_num, for example 170010.
    pub version: u32,
}

impl Identity {
    /// The major version, for example 17.
    pub fn major(&self) -> u32 {
        self.version / 10_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_file_says_where_each_timeline_was_left() {
        let file = "1\t0/2000A28\tno recovery target specified\n\n# a comment\n\
                    2\t0/40000A0\tno recovery target specified\n";
        let switch = |timeline, at: &str| Switch {
            timeline: Timeline(timeline),
            at: at.parse().unwrap(),
        };
        assert_eq!(
            history(file),
            [switch(1, "0/2000A28"), switch(2, "0/40000A0")]
        );
        assert_eq!(history(""), []);
    }

    #[test]
    fn a_system_identifier_survives_json_that_knows_only_doubles() {
        let id = SystemIdentifier(7_500_000_000_000_000_123);
        let text = serde_json::to_string(&id).unwrap();
        assert_eq!(text, "\"7500000000000000123\"");
        assert_eq!(serde_json::from_str::<SystemIdentifier>(&text).unwrap(), id);
    }

    #[test]
    fn lag_is_bytes_between_two_positions_and_never_negative() {
        let (a, b): (Lsn, Lsn) = ("0/5A2E4F8".parse().unwrap(), "0/5A2E500".parse().unwrap());
        assert_eq!(b.bytes_since(a), 8);
        assert_eq!(a.bytes_since(b), 0);
        assert!("zero".parse::<Lsn>().is_err());
    }

    #[test]
    fn an_insert_position_behind_a_page_header_is_the_page_start() {
        let end = |text: &str| text.parse::<Lsn>().unwrap().last_record_end().to_string();
        // As PostgreSQL 17 shows it after pg_switch_wal(): insert 0/3000028, flush and replay
        // 0/3000000.
        assert_eq!(end("0/3000028"), "0/3000000");
        assert_eq!(end("0/3002018"), "0/3002000");
        assert_eq!(end("0/3000030"), "0/3000030");
        assert_eq!(end("0/3000000"), "0/3000000");
    }
}
