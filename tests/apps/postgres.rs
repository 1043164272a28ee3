//! PostgreSQL with data checksums under pgbench, and clients that note every id whose insert was acknowledged.

use crate::world::{DIRECTORY, SETTLE, World};
use crate::{App, last_number, notes};
use skc::lab::{Node, Orphan};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Clients that note what they are told.
const CLIENTS: u64 = 4;
/// Acknowledged inserts of each before the cut may fall.
const LEAST: u64 = 100;
/// Where the server listens: a directory of the node's own.
const SOCKET: &str = "/run/pg";
/// Longest run of one of its programs: initdb makes a thousand files, on a machine that builds something else.
const LIMIT: Duration = Duration::from_secs(240);

/// Programs that are needed.
const PROGRAMS: [&str; 6] = ["initdb", "pg_ctl", "psql", "pgbench", "pg_amcheck", "pg_checksums"];

/// See the module.
pub struct Postgres {
    /// Directory of the programs.
    bin: PathBuf,
    before: [u64; CLIENTS as usize],
}

fn data() -> String {
    format!("{DIRECTORY}/pg")
}

impl Postgres {
    /// Finds an installation; the error says what is missing.
    pub fn find() -> Result<Self, String> {
        let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let bins = versions.map(|version| version.path().join("bin"));
        let whole = |bin: &PathBuf| PROGRAMS.iter().all(|program| bin.join(program).exists());
        let bin = bins.into_iter().find(whole);
        let bin =
            bin.ok_or_else(|| format!("/usr/lib/postgresql/VERSION/bin with {}", PROGRAMS.join(", ")))?;
        let user = Command::new("id").arg("postgres").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !user.is_ok_and(|status| status.success()) {
            return Err("the user postgres".to_owned());
        }
        Ok(Self { bin, before: [0; CLIENTS as usize] })
    }

    /// Runs one of its programs as its user.
    fn run(&self, world: &World, node: Node, argv: &[&str]) -> String {
        let program = self.bin.join(argv[0]).display().to_string();
        let all: Vec<&str> = ["runuser", "-u", "postgres", "--", &program]
            .into_iter()
            .chain(argv[1..].iter().copied())
            .collect();
        world.lab.run(node, &all, LIMIT).unwrap_or_else(|error| panic!("{error}{}", log(world, node)))
    }

    fn sql(&self, world: &World, node: Node, text: &str) -> String {
        self.run(
            world,
            node,
            &["psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-h", SOCKET, "-c", text, "postgres"],
        )
    }

    /// Starts the server and waits until it answers.
    fn serve(&self, world: &World, node: Node) {
        let dir = ["install", "-d", "-o", "postgres", "-m", "700", SOCKET];
        world.lab.run(node, &dir, SETTLE).expect("a directory for its socket");
        let (data, log) = (data(), format!("{SOCKET}/log"));
        let options = format!("-k {SOCKET} -c listen_addresses=");
        self.run(
            world,
            node,
            &["pg_ctl", "-D", &data, "-l", &log, "-o", &options, "-w", "-t", "50", "start"],
        );
    }

    fn stop(&self, world: &World, node: Node) {
        self.run(world, node, &["pg_ctl", "-D", &data(), "-m", "fast", "-w", "-t", "50", "stop"]);
    }

    /// Starts a shell in the node as its user; it dies with the node.
    fn shell(&self, world: &World, node: Node, script: &str) -> Child {
        let script = format!("PATH={}:$PATH; export PGHOST={SOCKET}; {script}", self.bin.display());
        let mut command = world.lab.command(node, &["runuser", "-u", "postgres", "--", "sh", "-c", &script]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        world.lab.spawn(node, &mut command, Orphan::LivesOn).expect("a client starts")
    }
}

/// The end of the server's log, for who has to find out why.
fn log(world: &World, node: Node) -> String {
    let argv = ["tail", "-n", "30", &format!("{SOCKET}/log")];
    world.lab.run(node, &argv, SETTLE).map_or_else(|_| String::new(), |text| format!("\n{text}"))
}

fn file(world: &World, client: u64) -> PathBuf {
    notes(world).join(format!("client-{client}"))
}

/// The file must be its user's.
fn prepare(world: &World, node: Node, path: &Path) {
    let path = path.display().to_string();
    world.lab.run(node, &["touch", &path], SETTLE).expect("create the notes");
    world.lab.run(node, &["chown", "postgres", &path], SETTLE).expect("give the notes away");
}

impl App for Postgres {
    fn install(&mut self, world: &World, node: Node) {
        let data = data();
        let dir = ["install", "-d", "-o", "postgres", "-m", "700", &data];
        world.lab.run(node, &dir, SETTLE).expect("a data directory");
        self.run(world, node, &["initdb", "-D", &data, "--data-checksums", "-A", "trust"]);
        self.serve(world, node);
        self.sql(world, node, "CREATE EXTENSION amcheck");
        self.sql(world, node, "CREATE TABLE told(client int, n int, body text, PRIMARY KEY (client, n))");
        self.run(world, node, &["pgbench", "-i", "-q", "-s", "2", "-h", SOCKET, "postgres"]);
        self.stop(world, node);
    }

    fn start(&mut self, world: &World, node: Node) -> Vec<Child> {
        self.serve(world, node);
        self.before = std::array::from_fn(|client| last_number(&file(world, client as u64)));
        let client = |client: u64| {
            let path = file(world, client);
            prepare(world, node, &path);
            let insert = format!(
                "INSERT INTO told VALUES ({client}, '$n', md5('$n')) ON CONFLICT DO NOTHING; SELECT '$n';"
            );
            let script = format!(
                "n={}; while n=$((n+1)); do echo \"{insert}\"; done | psql -qAtX -v ON_ERROR_STOP=1 postgres >>{}",
                self.before[client as usize],
                path.display()
            );
            self.shell(world, node, &script)
        };
        let mut children: Vec<Child> = (0..CLIENTS).map(client).collect();
        children.push(self.shell(world, node, "pgbench -n -c 4 -T 600 postgres"));
        children
    }

    fn busy(&self, world: &World) -> bool {
        (0..CLIENTS)
            .zip(self.before)
            .all(|(client, before)| last_number(&file(world, client)) >= before + LEAST)
    }

    fn check(&mut self, world: &World, node: Node) -> u64 {
        self.serve(world, node);
        let mut all = 0;
        for client in 0..CLIENTS {
            let told = last_number(&file(world, client));
            let have = format!(
                "SELECT count(*) FROM told WHERE client = {client} AND n <= {told} AND body = md5(n::text)"
            );
            let have = self.sql(world, node, &have);
            assert_eq!(have.trim(), told.to_string(), "rows of client {client}");
            all += told;
        }
        // Every transaction of pgbench adds the same number to an account, a teller and a branch.
        let sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers), \
                    (SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)";
        let sums = self.sql(world, node, sums);
        let sums: Vec<&str> = sums.trim().split('|').collect();
        assert!(sums.windows(2).all(|pair| pair[0] == pair[1]), "the sums of pgbench: {sums:?}");
        self.run(world, node, &["pg_amcheck", "-h", SOCKET, "--heapallindexed", "-d", "postgres"]);
        self.stop(world, node);
        self.run(world, node, &["pg_checksums", "--check", "-D", &data()]);
        all
    }
}
