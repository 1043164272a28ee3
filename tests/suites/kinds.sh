# The kinds of tests/suites/run, which reads this file.

FSX=${FSX:-fsx} FSSTRESS=${FSSTRESS:-fsstress} PJDFSTEST=${PJDFSTEST:-pjdfstest} FIO=${FIO:-fio}
FSX_OPS=${FSX_OPS:-1000000} FSX_SEEDS=${FSX_SEEDS:-1} FSSTRESS_SECONDS=${FSSTRESS_SECONDS:-180} FIO_SIZE=${FIO_SIZE:-64m}

run_fsx() {
  local flags seed direct="-Z -R -W -r 4096 -w 4096"
  have "$FSX" "$1" || return
  case "$1" in
    fsx) flags= ;;
    fsx-direct) flags=$direct ;;
    fsx-aio) flags=-A ;;
    fsx-aio-direct) flags="-A $direct" ;;
    fsx-uring) flags=-U ;;
    fsx-reopen) flags="-c 20" ;;
    *) say "there is no suite $1"; failed=1; return ;;
  esac
  for seed in $FSX_SEEDS; do
    is_done "$1-$seed-$FSX_OPS" && continue
    # At each reopening it drops the caches of the whole machine, a second each: not here.
    # shellcheck disable=SC2016,SC2086 # The inner shell's words; flags are words.
    suite "$1-$seed-$FSX_OPS" unshare -m sh -c 'mount --bind /dev/null /proc/sys/vm/drop_caches && exec "$@"' sh \
      "$FSX" $flags -N "$FSX_OPS" -S "$seed" -q "$DIR/$1.file"
  done
}

run_fsstress() {
  have "$FSSTRESS" fsstress || return
  # It runs until it is stopped: 124 is its good end. As many processes as a small machine carries.
  suite fsstress sh -c "timeout $FSSTRESS_SECONDS '$FSSTRESS' -d $DIR/fsstress -n 100000000 -p 6 -s 1; test \$? = 124"
}

run_fio() {
  have "$FIO" fio || return
  for engine in io_uring libaio mmap psync; do
    suite "fio-$engine" "$FIO" --name=v --directory="$DIR" --ioengine="$engine" --rw=randrw --bs=4k-64k --size="$FIO_SIZE" \
      --numjobs=2 --iodepth=8 --verify=crc32c --fsync=32 --fallocate=none \
      --verify_state_save=0
  done
}

run_pjdfstest() {
  have "$PJDFSTEST" pjdfstest || return
  [ -e "${PJDFSTEST_CONFIG:-}" ] || { skip pjdfstest "PJDFSTEST_CONFIG names no file (see src/docs/posix.md)"; return; }
  export PJDFSTEST PJDFSTEST_CONFIG
  cases pjdfstest "$here/pjdfstest" rust
}

run_pjdfstest_c() {
  [ -x "${PJDFSTEST_C:-}/pjdfstest" ] || { skip pjdfstest-c "PJDFSTEST_C names no folder with a built pjdfstest"; return; }
  export PJDFSTEST_C
  cases pjdfstest-c "$here/pjdfstest" c
}

run_ltp() {
  [ -e "${LTP:-}/lib/libltp.a" ] || { skip ltp "LTP names no folder with a built LTP"; return; }
  export LTP
  cases ltp "$here/ltp"
}

run_xfstests() {
  [ -x "${XFSTESTS:-}/ltp/fsx" ] || { skip xfstests "XFSTESTS names no folder with built xfstests"; return; }
  export XFSTESTS SKC
  cases xfstests "$here/xfstests" in-place
}

# Cases that mount and unmount: a mirror stays mounted, so these run on the same file-system code without a peer.
run_xfstests_scratch() {
  [ -x "${XFSTESTS:-}/ltp/fsx" ] || { skip xfstests-scratch "XFSTESTS names no folder with built xfstests"; return; }
  local mounts dir=${ram:-/var/tmp}/$NAME-scratch
  export XFSTESTS SKC
  for mounts in bind passthrough; do
    "$here/xfstests" $mounts "$dir" "$RESULTS/xfstests.$mounts" > "$RESULTS/xfstests.$mounts.log" 2>&1
    say "xfstests-scratch on $mounts: $(tail -1 "$RESULTS/xfstests.$mounts.log")"
    rm -rf "$dir"
  done
  deviations "$RESULTS/xfstests.bind" "$RESULTS/xfstests.passthrough"
}
