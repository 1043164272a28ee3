//! Clusters that are in the specs and not up on this node: why, since when, what to do.
//!
//! The node's reconciliation finds them ([`Downs::settle`]), status and the operations read them.

use crate::api::ApiError;
use crate::base::{ClusterId, Mono};
use std::collections::BTreeMap;

/// One of them.
#[derive(Debug, Clone)]
pub struct Down {
    /// Code, reason and what to do next.
    pub problem: ApiError,
    /// When this problem was first seen.
    pub since: Mono,
    /// When it was last seen.
    pub at: Mono,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Downs(BTreeMap<ClusterId, Down>);

impl Downs {
    /// Takes over what a whole pass found; gives what is news.
    pub fn settle(&mut self, found: Vec<(ClusterId, ApiError)>, now: Mono) -> Vec<(ClusterId, ApiError)> {
        let before = std::mem::take(&mut self.0);
        let mut news = Vec::new();
        for (cluster, problem) in found {
            let known = before.get(&cluster).filter(|down| {
                (&down.problem.code, &down.problem.message) == (&problem.code, &problem.message)
            });
            if known.is_none() {
                news.push((cluster.clone(), problem.clone()));
            }
            let since = known.map_or(now, |down| down.since);
            self.0.insert(cluster, Down { problem, since, at: now });
        }
        news
    }

    /// Why this one is down.
    pub fn get(&self, cluster: &ClusterId) -> Option<&Down> {
        self.0.get(cluster)
    }

    /// All by name.
    pub fn iter(&self) -> impl Iterator<Item = (&ClusterId, &Down)> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_news_once_keeps_its_age_and_goes_when_it_is_healed() {
        let shop = || ClusterId("shop".into());
        let problem = |text: &str| vec![(shop(), ApiError::new("SKC-E7020", text, "mend it"))];
        let mut downs = Downs::default();
        assert_eq!(downs.settle(problem("slots"), Mono(1000)).len(), 1);
        assert!(downs.settle(problem("slots"), Mono(11_000)).is_empty());
        let down = downs.get(&shop()).expect("still down");
        assert_eq!((down.since, down.at), (Mono(1000), Mono(11_000)));
        assert_eq!(downs.settle(problem("directory"), Mono(21_000)).len(), 1);
        assert_eq!(downs.get(&shop()).map(|down| down.since), Some(Mono(21_000)));
        downs.settle(Vec::new(), Mono(31_000));
        assert!(downs.get(&shop()).is_none());
    }
}
