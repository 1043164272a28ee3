//! The registry of error codes and conditions, each with its page for `skc explain`.
//!
//! Invariants: a code never changes its meaning and is never reused; every page under
//! `src/docs/explain` belongs to one entry and the compiler refuses an entry without a page (the tidy test
//! holds the other direction). To add one: write `src/docs/explain/SKC-E####.md`, add a line here.
//! `SKC-E`: errors; `SKC-R`: reasons that a status shows; `SKC-V`: events.
//! Ranges of errors: E04 refused commands, E1 specs (E11 warnings), E20 link and identity, E21 state, E3 file system, E4 replication,
//! E5 network, E6 services, E7 command line, agent, lab. E00 and E01 are never assigned (examples).

use std::fmt;

/// An error, reason or event that a user can meet.
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
    // Commands that the decision core refused
    OP_NO_RECORD = "SKC-E0401", "The fencing record cannot be written";
    OP_SWAP_REFUSED = "SKC-E0402", "A swap is not possible now";
    OP_PROMOTE_REFUSED = "SKC-E0403", "A promotion is not possible now";
    OP_SWAP_ABORTED = "SKC-E0404", "The swap did not take place";
    OP_UNCONFIRMED = "SKC-E0405", "The peer did not confirm the hand-over";
    OP_SUPERSEDED = "SKC-E0406", "Another command took the place of this one";
    OP_STOPPING = "SKC-E0407", "The cluster is still stopping";
    OP_ADOPT_REFUSED = "SKC-E0408", "An adoption is not possible now";
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
    SPEC_PATTERN = "SKC-E1019", "A pattern is malformed";
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
    // Specs that are valid, and unwise
    SPEC_BUSY = "SKC-E1101", "The timeout is shorter than what a busy machine sustains";
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
    FS_MOUNT = "SKC-E3001", "The mount failed";
    FS_KERNEL = "SKC-E3004", "The kernel lacks what the mirror needs";
    FS_BUSY_MOUNT = "SKC-E3005", "Another live mirror is mounted there";
    FS_HOLDERS = "SKC-E3006", "Processes hold the directory from before the mount";
    FS_IO = "SKC-E3008", "The disk reports errors";
    FS_NO_FUSE = "SKC-E3009", "/dev/fuse cannot be opened";
    FS_ADOPT = "SKC-E3010", "The directory could not be adopted";
    FS_SPACE = "SKC-E3011", "The disk has too little room";
    FS_UNMOUNTED = "SKC-E3012", "The mirror's mount was taken away";
    FS_BELOW = "SKC-E3013", "Something is mounted below the directory";
    FS_SICK = "SKC-E3014", "The disk does not answer, or fails again and again";
    FS_LINK_ACROSS = "SKC-E3015", "A file has a mirrored name and a local one";
    // Replication
    REPL_APPLY = "SKC-E4001", "The standby cannot apply";
    REPL_STUCK = "SKC-E4005", "The data path does not come to rest";
    // Network
    NET_NETLINK = "SKC-E5001", "The kernel refused a network operation";
    NET_DEADLINE = "SKC-E5002", "A network operation took too long";
    NET_NO_INTERFACE = "SKC-E5003", "No interface for the virtual IP";
    NET_NO_SUCH_INTERFACE = "SKC-E5004", "The interface does not exist";
    NET_INTERFACE_DOWN = "SKC-E5005", "The interface is down";
    NET_VIP_TAKEN = "SKC-E5006", "The virtual IP belongs to a stranger";
    NET_SOCKET = "SKC-E5007", "A probe socket cannot be opened or used";
    NET_SYNTAX = "SKC-E5008", "This is no virtual IP";
    NET_PERMANENT = "SKC-E5009", "The virtual IP is a permanent address of this node";
    // Services and checkers
    SVC_START = "SKC-E6001", "A service did not start";
    SVC_STOP = "SKC-E6002", "A service did not stop in time";
    SVC_COMMAND = "SKC-E6007", "A command cannot be run";
    // Command line, API, agent, lab
    API_REQUEST = "SKC-E7001", "The request or the answer was not understood";
    API_NO_AGENT = "SKC-E7002", "No agent answers";
    API_CLOSED = "SKC-E7003", "The agent closed the connection";
    API_NO_ANSWER = "SKC-E7004", "The agent did not answer in time";
    CLI_READ = "SKC-E7005", "A file named on the command line cannot be read";
    API_FOLLOWERS = "SKC-E7006", "Too many clients follow the events";
    API_TOO_LARGE = "SKC-E7007", "The request is too large";
    APPLY_REVISION = "SKC-E7010", "Somebody else changed the spec";
    APPLY_NOTHING = "SKC-E7011", "No spec was given";
    SPEC_STORED = "SKC-E7012", "A stored spec cannot be used";
    APPLY_FINDINGS = "SKC-E7013", "The spec is refused";
    APPLY_NOT_STORED = "SKC-E7014", "The spec cannot be stored";
    NO_CLUSTER = "SKC-E7015", "There is no such cluster";
    APPLY_NEEDS_STOP = "SKC-E7016", "The change needs a stop";
    APPLY_PAIR = "SKC-E7017", "The spec does not fit the pair";
    APPLY_KEY = "SKC-E7018", "Two clusters cannot be told apart";
    APPLY_UNLIKE = "SKC-E7019", "One node cannot hold what the other can";
    CLUSTER_START = "SKC-E7020", "A cluster cannot be brought up";
    NOT_YET = "SKC-E7021", "This is not there yet";
    DELETE_RUNNING = "SKC-E7022", "The cluster runs and cannot be removed";
    EJECT_RUNNING = "SKC-E7023", "The cluster is not stopped";
    CLUSTER_ENDED = "SKC-E7024", "The cluster ended before it answered";
    AGENT_CANNOT_SERVE = "SKC-E7025", "The agent cannot serve";
    ADOPT_NODE = "SKC-E7026", "The named source is no node of the cluster";
    GUARD_TOMBSTONE = "SKC-E7027", "The guard does not take what it must know";
    OPERATE_SLOW = "SKC-E7028", "The operation is not done in time";
    SYNC_FAILED = "SKC-E7029", "Not everything is known to be durable";
    CLI_ROOT = "SKC-E7030", "This needs root";
    CLI_CONFIRM = "SKC-E7031", "The operation was not confirmed";
    CLI_UNKNOWN_TOPIC = "SKC-E7032", "There is no such code or condition";
    CLI_TIMEOUT = "SKC-E7033", "The wait ended before the state was reached";
    LAB_SETUP = "SKC-E7040", "The machine refused a step of the lab";
    LAB_REFUSED = "SKC-E7041", "The lab is not as the verb needs it";
    LAB_VERDICT = "SKC-E7042", "The demo found a loss or a difference";
    LEDGER = "SKC-E7043", "The ledger application failed";
    PASSTHROUGH = "SKC-E7044", "The directory cannot be served without a peer";
    // Reasons: why a cluster is as it is
    REASON_0101 = "SKC-R0101", "The directory has not been looked at yet";
    REASON_0102 = "SKC-R0102", "The directory is missing";
    REASON_0103 = "SKC-R0103", "Another directory is at the path than before";
    REASON_0104 = "SKC-R0104", "The directory is empty although it was not";
    REASON_0105 = "SKC-R0105", "The disk returns errors or does not answer in time";
    REASON_0106 = "SKC-R0106", "The mirror's mount was taken away";
    REASON_0201 = "SKC-R0201", "The fencing record cannot be written";
    REASON_0202 = "SKC-R0202", "The node waits for its peer";
    REASON_0203 = "SKC-R0203", "The freeze ended without permission to go on alone";
    REASON_0204 = "SKC-R0204", "The peer goes on";
    REASON_0205 = "SKC-R0205", "The peer may have acknowledged writes alone";
    REASON_0206 = "SKC-R0206", "A resync broke off";
    REASON_0207 = "SKC-R0207", "The node could not follow the primary";
    REASON_0208 = "SKC-R0208", "A sync of the local disk failed";
    REASON_0209 = "SKC-R0209", "The local directory is not usable";
    REASON_0210 = "SKC-R0210", "Split brain: both nodes acknowledged alone";
    REASON_0301 = "SKC-R0301", "The session to the primary is lost, its heartbeats are not";
    REASON_0302 = "SKC-R0302", "The primary is silent and the operator decides";
    REASON_0303 = "SKC-R0303", "The primary is silent; probing before promotion";
    REASON_0304 = "SKC-R0304", "Writes wait while the session reconnects";
    REASON_0305 = "SKC-R0305", "Writes wait until this node may go on alone";
    REASON_0306 = "SKC-R0306", "The node is being resynced";
    REASON_0307 = "SKC-R0307", "Making durable what only memory held";
    REASON_0308 = "SKC-R0308", "The standby is being resynced";
    REASON_0309 = "SKC-R0309", "There is no standby";
    REASON_0310 = "SKC-R0310", "Handing over";
    REASON_0311 = "SKC-R0311", "Stopping";
    REASON_0312 = "SKC-R0312", "The standby is settling";
    REASON_0401 = "SKC-R0401", "Both directories are new to each other";
    REASON_0402 = "SKC-R0402", "Both nodes hold acknowledged data the other has not";
    REASON_0403 = "SKC-R0403", "Neither copy is complete";
    REASON_0404 = "SKC-R0404", "The two copies have no known common ancestor";
    REASON_0405 = "SKC-R0405", "The cluster is not started on both nodes";
    REASON_0406 = "SKC-R0406", "A directory is not usable on one of the nodes";
    REASON_0407 = "SKC-R0407", "The two agents judge the same facts differently";
    REASON_0501 = "SKC-R0501", "The ping witness cannot be reached";
    REASON_0502 = "SKC-R0502", "The agent stalled longer than its lease";
    REASON_0503 = "SKC-R0503", "The restart limit was reached";
    REASON_0504 = "SKC-R0504", "Another machine answers for a virtual address";
    REASON_0505 = "SKC-R0505", "A service failed";
    REASON_0506 = "SKC-R0506", "A checker is down";
    REASON_0507 = "SKC-R0507", "Stopped by the operator";
    REASON_0508 = "SKC-R0508", "Nothing is heard of the peer";
    REASON_0601 = "SKC-R0601", "Quarantine holds what a resync replaced";
    REASON_0602 = "SKC-R0602", "A quarantine does not hold everything";
    // Events: what happened
    EVENT_0001 = "SKC-V0001", "The cluster was started here";
    EVENT_0002 = "SKC-V0002", "The cluster was stopped here";
    EVENT_0003 = "SKC-V0003", "The link to the peer came up";
    EVENT_0004 = "SKC-V0004", "The nodes agreed";
    EVENT_0005 = "SKC-V0005", "The handshake was tried again";
    EVENT_0006 = "SKC-V0006", "The session was lost";
    EVENT_0007 = "SKC-V0007", "Writes go on";
    EVENT_0008 = "SKC-V0008", "The primary goes on alone";
    EVENT_0009 = "SKC-V0009", "The node became primary";
    EVENT_0010 = "SKC-V0010", "The operator forced the node to be primary";
    EVENT_0011 = "SKC-V0011", "The node gave up its role";
    EVENT_0012 = "SKC-V0012", "The node marked itself Behind";
    EVENT_0013 = "SKC-V0013", "The peer's guard said that its agent died";
    EVENT_0014 = "SKC-V0014", "A resync began";
    EVENT_0015 = "SKC-V0015", "The standby is UpToDate";
    EVENT_0016 = "SKC-V0016", "A copy is not complete";
    EVENT_0017 = "SKC-V0017", "The role was handed over";
    EVENT_0018 = "SKC-V0018", "The role was taken over in a hand-over";
    EVENT_0019 = "SKC-V0019", "A hand-over was given up";
    EVENT_0020 = "SKC-V0020", "The agent stalled";
    EVENT_0021 = "SKC-V0021", "The restart limit was reached";
    EVENT_0022 = "SKC-V0022", "A checker acted";
    EVENT_0023 = "SKC-V0023", "The fencing record could not be written";
    EVENT_0024 = "SKC-V0024", "Split brain was found";
    EVENT_0025 = "SKC-V0025", "The standby was ejected";
    EVENT_0101 = "SKC-V0101", "Quarantine keeps what a resync replaced";
    EVENT_0102 = "SKC-V0102", "Quarantine could not keep everything";
}

conditions! {
    "STOP", "The cluster is stopped on this node";
    "WAIT", "The node waits";
    "ALONE", "The node serves without a standby";
    "PRIM", "The node serves and has a standby";
    "SECOND", "The node is the standby";
    "Ready", "The role is carried out as it should be";
    "Transient", "The node is on its way to its role";
    "NotReady", "The role is not carried out, and that does not pass by itself soon";
    "UpToDate", "The copy holds everything that was acknowledged";
    "Consistent", "The copy is whole, but not known to be the newest";
    "Behind", "The peer may have acknowledged writes alone";
    "Crashed", "The node lost power with operations in flight";
    "Outdated", "The copy is known to be older than the peer's";
    "Inconsistent", "The copy is in the middle of a resync or a failed apply";
    "New", "The directory is in no mirror yet";
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
            let (kind, digits) = code.id.strip_prefix("SKC-").unwrap().split_at(1);
            assert!(["E", "R", "V"].contains(&kind), "{}", code.id);
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
