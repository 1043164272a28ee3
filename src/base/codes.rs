//! The registry of error codes and conditions, each with its page for `skc explain`.
//!
//! Invariants: a code never changes its meaning and is never reused; every page under
//! `src/docs/explain` belongs to one entry and the compiler refuses an entry without a page (the tidy test
//! holds the other direction). To add one: write `src/docs/explain/SKC-E####.md`, add a line here.
//! Ranges: E0 never assigned (examples), E1 specs, E20 link and identity, E21 state, E3 file system, E4 replication, E50 network, E51 failover, E6 services, E7 command line.

use std::fmt;

/// An error that a user can meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code {
    /// "SKC-E1010".
    pub id: &'static str,
    /// One line.
    pub title: &'static str,
    /// The page: what happened, what skc did, what to do next.
    pub page: &'static str,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.id)
    }
}

/// A word that `skc status` shows and `skc explain` knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Condition {
    /// "WAIT".
    pub name: &'static str,
    /// One line.
    pub title: &'static str,
    /// The page: what it means, what skc does, what to do next.
    pub page: &'static str,
}

/// The code of that id, in any case of letters, with or without "SKC-".
pub fn code(id: &str) -> Option<&'static Code> {
    CODES.iter().find(|c| c.id.eq_ignore_ascii_case(id) || c.id[4..].eq_ignore_ascii_case(id))
}

/// The condition of that name, in any case of letters.
pub fn condition(name: &str) -> Option<&'static Condition> {
    CONDITIONS.iter().find(|c| c.name.eq_ignore_ascii_case(name))
}

macro_rules! codes {
    ($($name:ident = $id:literal, $title:literal;)*) => {
        $(
            #[doc = $title]
            pub const $name: Code = Code {
                id: $id, title: $title, page: include_str!(concat!("../docs/explain/", $id, ".md")),
            };
        )*
        /// Every code, by number.
        pub const CODES: &[Code] = &[$($name),*];
    };
}

macro_rules! conditions {
    ($($name:literal, $title:literal;)*) => {
        /// Every condition.
        pub const CONDITIONS: &[Condition] = &[$(Condition {
            name: $name, title: $title, page: include_str!(concat!("../docs/explain/", $name, ".md")),
        }),*];
    };
}

codes! {
    // Specs
    SPEC_READ = "SKC-E1001", "A spec file cannot be read";
    SPEC_SYNTAX = "SKC-E1002", "The document is not valid YAML";
    SPEC_FORM = "SKC-E1003", "The document uses a form of YAML that specs may not use";
    SPEC_AMBIGUOUS = "SKC-E1004", "Two YAML parsers read the document differently";
    SPEC_DUPLICATE_KEY = "SKC-E1005", "A key stands twice in one mapping";
    SPEC_TOO_BIG = "SKC-E1006", "The document is too large or too deep";
    SPEC_NOT_ONE = "SKC-E1007", "The document is not a ClusterSpec";
    SPEC_UNKNOWN_FIELD = "SKC-E1010", "A field is unknown";
    SPEC_MISSING_FIELD = "SKC-E1011", "A required field is missing";
    SPEC_TYPE = "SKC-E1012", "A value has the wrong type";
    SPEC_UNIT = "SKC-E1013", "A quantity has no unit or a wrong one";
    SPEC_RANGE = "SKC-E1014", "A value is outside its bounds";
    SPEC_WORD = "SKC-E1015", "A value is not one of the allowed words";
    SPEC_TEXT = "SKC-E1016", "A text is malformed";
    SPEC_ADDRESS = "SKC-E1017", "An address is malformed";
    SPEC_PATH = "SKC-E1018", "A path is malformed";
    SPEC_NOT_YET = "SKC-E1020", "This is not supported yet";
    SPEC_DUPLICATE_NAME = "SKC-E1021", "A name or path occurs twice";
    SPEC_DUPLICATE_ADDRESS = "SKC-E1022", "An address occurs twice";
    SPEC_OVERLAP = "SKC-E1023", "Two directories overlap";
    SPEC_RESERVED_PATH = "SKC-E1024", "A directory cannot be mirrored";
    SPEC_REFERENCE = "SKC-E1025", "A name refers to nothing";
    SPEC_ADDRESS_ROLE = "SKC-E1026", "One address has two roles";
    SPEC_TIMERS = "SKC-E1027", "The timers cannot work together";
    SPEC_CHOICE = "SKC-E1028", "Not exactly one of several choices";
    SPEC_VIP_NETWORK = "SKC-E1029", "A virtual IP has no network to live on";
    // Link, identity, state
    LINK_NO_PAIR = "SKC-E2001", "This node is in no pair";
    LINK_ALREADY_IN_PAIR = "SKC-E2002", "This node is already in a pair";
    LINK_KEYS = "SKC-E2003", "The keys of this node cannot be used";
    LINK_NODE = "SKC-E2004", "The node's name or addresses cannot be used";
    LINK_TOKEN_SYNTAX = "SKC-E2010", "This is no token";
    LINK_TOKEN_EXPIRED = "SKC-E2011", "The token has expired";
    LINK_TOKEN_USED = "SKC-E2012", "The token was used before";
    LINK_WRONG_AUTHORITY = "SKC-E2013", "The address of the token belongs to another pair";
    LINK_PAIR_COMPLETE = "SKC-E2014", "The pair has its two nodes";
    LINK_NO_AUTHORITY = "SKC-E2015", "This node cannot enrol others";
    LINK_CERTIFICATE = "SKC-E2020", "A certificate is not from this pair";
    LINK_WRONG_NODE = "SKC-E2021", "A certificate is not the one enrolled for the peer";
    LINK_CONTRADICTION = "SKC-E2022", "The peer contradicts itself";
    LINK_VERSION = "SKC-E2023", "The two nodes speak different versions";
    LINK_GARBAGE = "SKC-E2024", "Something that is not skc connected";
    LINK_DEADLINE = "SKC-E2025", "The peer did not finish a step in time";
    LINK_REFUSED = "SKC-E2026", "The peer refused";
    LINK_IO = "SKC-E2027", "The network refused an operation";
    LINK_NOT_CONNECTED = "SKC-E2030", "The peer is not connected";
    LINK_QUEUE_FULL = "SKC-E2031", "The queue to the peer is full";
    LINK_FRAME = "SKC-E2032", "A message fits no frame";
    LINK_START = "SKC-E2033", "The system gave no thread or timer";
    STATE_IO = "SKC-E2101", "The state directory cannot be used";
    STATE_LOCKED = "SKC-E2102", "Another agent uses the state directory";
    STATE_TOO_NEW = "SKC-E2103", "The state was written by a newer release";
    STATE_DAMAGED = "SKC-E2104", "A record of the state directory is damaged";
    STATE_ENCODE = "SKC-E2105", "A record cannot be written";
    STATE_NAME = "SKC-E2106", "A name cannot be a file name";
    // File system, mount, directory identity
    FS_MISSING = "SKC-E3001", "The directory does not exist";
    FS_REPLACED = "SKC-E3002", "The directory is not the one it was";
    FS_EMPTIED = "SKC-E3003", "The directory is empty where it was not";
    FS_KERNEL = "SKC-E3004", "The kernel lacks what the mirror needs";
    FS_BUSY_MOUNT = "SKC-E3005", "Another live mirror is mounted there";
    FS_HOLDERS = "SKC-E3006", "Processes hold the directory from before the mount";
    FS_IO = "SKC-E3007", "The disk reports errors";
    FS_NO_FUSE = "SKC-E3008", "/dev/fuse cannot be opened";
    FS_MOUNT = "SKC-E3009", "The mount failed";
    // Replication
    REPL_APPLY = "SKC-E4001", "The standby cannot apply";
    REPL_RESYNC = "SKC-E4002", "A resync was interrupted";
    REPL_NO_SOURCE = "SKC-E4003", "Both nodes hold different data and none is known to be newer";
    REPL_SPLIT_BRAIN = "SKC-E4004", "Both nodes acknowledged writes alone";
    REPL_DIFFERENT = "SKC-E4005", "The two trees differ";
    REPL_ACK_LATE = "SKC-E4006", "The standby acknowledges too late";
    REPL_CAPABILITY = "SKC-E4007", "The standby's file system cannot hold the data";
    // Network, then failover and arbitration
    NET_NETLINK = "SKC-E5001", "The kernel refused a network operation";
    NET_DEADLINE = "SKC-E5002", "A network operation took too long";
    NET_NO_INTERFACE = "SKC-E5003", "No interface for the virtual IP";
    NET_NO_SUCH_INTERFACE = "SKC-E5004", "The interface does not exist";
    NET_INTERFACE_DOWN = "SKC-E5005", "The interface is down";
    NET_VIP_TAKEN = "SKC-E5006", "The virtual IP belongs to a stranger";
    NET_SOCKET = "SKC-E5007", "A probe socket cannot be opened or used";
    NET_SYNTAX = "SKC-E5008", "This is no virtual IP";
    NET_PERMANENT = "SKC-E5009", "The virtual IP is a permanent address of this node";
    FO_FROZEN = "SKC-E5101", "The freeze ended without a decision";
    FO_WITNESS = "SKC-E5102", "No witness answers";
    FO_VIP_ANSWERED = "SKC-E5103", "The virtual IP still answers";
    FO_COLD_START = "SKC-E5104", "This node waits for its peer after a start";
    FO_RESTART_LIMIT = "SKC-E5105", "The restart limit is reached";
    FO_NOT_UP_TO_DATE = "SKC-E5106", "The standby is not up to date";
    FO_LATE = "SKC-E5108", "The agent woke up late";
    FO_MANUAL = "SKC-E5109", "Failover is manual";
    FO_GUARD = "SKC-E5110", "The agent died and was fenced";
    // Services and checkers
    SVC_START = "SKC-E6001", "A service did not start";
    SVC_STOP = "SKC-E6002", "A service did not stop in time";
    SVC_DIED = "SKC-E6003", "A service ended by itself";
    SVC_CHECKER = "SKC-E6004", "A checker failed";
    SVC_COMMAND = "SKC-E6007", "A command cannot be run";
    // Command line, API, lab
    API_REQUEST = "SKC-E7001", "The request or the answer was not understood";
    API_NO_AGENT = "SKC-E7002", "No agent answers";
    API_CLOSED = "SKC-E7003", "The agent closed the connection";
    API_NO_ANSWER = "SKC-E7004", "The agent did not answer in time";
    CLI_READ = "SKC-E7005", "A file named on the command line cannot be read";
    CLI_NO_CLUSTER = "SKC-E7010", "There is no such cluster";
    CLI_ROOT = "SKC-E7011", "This needs root";
    CLI_CONFIRM = "SKC-E7012", "The operation was not confirmed";
    CLI_UNKNOWN_TOPIC = "SKC-E7013", "There is no such code or condition";
    CLI_RUNNING = "SKC-E7014", "The change is refused while the cluster runs";
    CLI_REVISION = "SKC-E7015", "Somebody else changed the spec";
    CLI_TIMEOUT = "SKC-E7016", "The wait ended before the state was reached";
    LAB_SETUP = "SKC-E7020", "The lab could not be built";
    LAB_NAME = "SKC-E7021", "There is no such lab or it is already up";
    LAB_VERDICT = "SKC-E7022", "The demo found a loss or a difference";
}

conditions! {
    "STOP", "The cluster is stopped on this node";
    "WAIT", "The node waits";
    "ALONE", "The node serves without a standby";
    "PRIM", "The node serves and has a standby";
    "SECOND", "The node is the standby";
    "UpToDate", "The copy holds everything that was acknowledged";
    "Behind", "The peer may have acknowledged writes alone";
    "Crashed", "The node lost power with operations in flight";
    "Outdated", "The copy is known to be older than the peer's";
    "Inconsistent", "The copy is in the middle of a resync or a failed apply";
    "Frozen", "The primary waits for a decision";
    "L0", "Guarantee level 0: the operator decides";
    "L1", "Guarantee level 1: a ping witness decides";
    "L2", "Guarantee level 2: a witness, and the virtual IP is probed";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_well_formed_sorted_and_unique() {
        for pair in CODES.windows(2) {
            assert!(pair[0].id < pair[1].id, "{} and {}", pair[0].id, pair[1].id);
        }
        for code in CODES {
            let digits = code.id.strip_prefix("SKC-E").unwrap();
            assert!(digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_digit()), "{}", code.id);
        }
    }

    #[test]
    fn every_page_has_its_title_and_the_three_sections() {
        let codes = CODES.iter().map(|c| (c.id, c.title, c.page));
        let conditions = CONDITIONS.iter().map(|c| (c.name, c.title, c.page));
        for (name, title, page) in codes.chain(conditions) {
            assert!(page.starts_with(&format!("# {name}: {title}\n")), "{name}");
            for section in ["## What happened", "## What skc did", "## What to do next"] {
                assert!(page.contains(section), "{name} lacks {section}");
            }
        }
    }

    #[test]
    fn lookup_is_forgiving_about_case_and_prefix() {
        assert_eq!(code("e1010"), Some(&SPEC_UNKNOWN_FIELD));
        assert_eq!(code("skc-e1010"), Some(&SPEC_UNKNOWN_FIELD));
        assert_eq!(condition("wait").map(|c| c.name), Some("WAIT"));
        assert!(code("SKC-E9999").is_none() && code("\u{e9}").is_none());
    }
}
