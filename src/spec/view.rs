//! A value and where it stands: what rules look through.
//!
//! Rules read documents that may still be wrong elsewhere, so every accessor answers "absent" to a value of
//! the wrong shape; that such a value is reported is `shape`'s duty.

use super::finding::Path;
use crate::base::Timespan;
use serde_json::Value;
use std::net::IpAddr;

/// Entries of a list that rules look at: more than any list may have, so that rules which compare
/// each entry with each other one stay cheap; `shape` refuses longer lists.
const ITEMS_MAX: usize = 256;

/// A value of a document with its path.
#[derive(Debug, Clone)]
pub(super) struct View<'a> {
    pub(super) path: Path,
    pub(super) value: &'a Value,
}

impl<'a> View<'a> {
    pub(super) fn root(value: &'a Value) -> Self {
        Self { path: Path::default(), value }
    }

    /// The field of that name; absent fields give a null value at their path.
    pub(super) fn get(&self, key: &str) -> View<'a> {
        View { path: self.path.key(key), value: self.value.get(key).unwrap_or(&Value::Null) }
    }

    pub(super) fn is_present(&self) -> bool {
        !self.value.is_null()
    }

    pub(super) fn items(&self) -> impl Iterator<Item = View<'a>> + use<'a> {
        let path = self.path.clone();
        let items = self.value.as_array().into_iter().flatten().take(ITEMS_MAX).enumerate();
        items.map(move |(i, value)| View { path: path.index(i), value })
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a str, View<'a>)> + use<'a> {
        let path = self.path.clone();
        let entries = self.value.as_object().into_iter().flatten();
        entries.map(move |(key, value)| (key.as_str(), View { path: path.key(key), value }))
    }

    /// The text; "" if there is none.
    pub(super) fn text(&self) -> &'a str {
        self.value.as_str().unwrap_or("")
    }

    pub(super) fn ip(&self) -> Option<IpAddr> {
        self.text().parse().ok()
    }

    /// The duration; `None` if it is written wrongly, the default if it is absent.
    pub(super) fn timespan(&self, default: Timespan) -> Option<Timespan> {
        match self.value {
            Value::Null => Some(default),
            Value::String(text) => text.parse().ok(),
            _ => None,
        }
    }

    /// The number; `None` if it is no number, the default if it is absent.
    pub(super) fn number(&self, default: u16) -> Option<u64> {
        match self.value {
            Value::Null => Some(u64::from(default)),
            value => value.as_u64(),
        }
    }
}
