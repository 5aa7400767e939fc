#!/usr/bin/env bash
# What `make dist` has packed: it is unpacked, checked, and run, also in a root in which there is nothing but the program, hosts and resolv.conf.
#   dist.sh                takes the one of target/dist
#   dist.sh ARCHIVE        takes this one; SHA256SUMS stands beside it
. "$(dirname "$0")/lib.sh"

archives=("${CARGO_TARGET_DIR:-$REPOSITORY/target}"/dist/*.tar.gz)
archive=$(realpath "${1:-${archives[0]}}")
about "$archive"
expect_that "the sum of the archive is right" env -C "$(dirname "$archive")" sha256sum --quiet --check SHA256SUMS
tar --extract --file "$archive" --directory "$scratch"
unpacked=$(echo "$scratch"/evenkv-*)
expect_that "all files have their sums" env -C "$unpacked" sha256sum --quiet --check SHA256SUMS
expect_that "no file is without one" [ "$(find "$unpacked" -type f | wc -l)" = $(($(wc -l <"$unpacked/SHA256SUMS") + 1)) ]
expect_that "its files belong to nobody and have one time" [ "$(tar --list --verbose --numeric-owner --file "$archive" | awk '{print $2, $4, $5}' | sort -u | wc -l)" = 1 ]
program=$unpacked/bin/evenkv

# --- what comes along

version=$("$program" --version)
expect_that "the version names the commit: $version" grep -Eqx 'evenkv [0-9.]+ \(commit [-0-9A-Za-z._+]+\)' <<<"$version"
expect_that "PROGRAM has the same" [ "$(head -n 1 "$unpacked/PROGRAM")" = "$version" ]
expect_that "bash reads its completions" bash -n "$unpacked/completions/evenkv.bash"
if command -v zsh >/dev/null; then expect_that "zsh reads its completions" zsh -n "$unpacked/completions/_evenkv"; fi
if command -v fish >/dev/null; then expect_that "fish reads its completions" fish -n "$unpacked/completions/evenkv.fish"; fi
# shellcheck disable=SC2016 # by the shell that has read them
expect_that "bash completes a subcommand" bash -c '
  . "$1"; COMP_WORDS=(evenkv expo) COMP_CWORD=1; _evenkv evenkv expo evenkv; [ "${COMPREPLY[*]}" = export ]' bash "$unpacked/completions/evenkv.bash"
for page in evenkv evenkv-put evenkv-view-change; do
  expect_that "there is a manual of $page" [ -s "$unpacked/man/man1/$page.1" ]
done
if command -v man >/dev/null; then
  expect_that "the manual can be read" grep -q MAX_MEMORY <<<"$(MANWIDTH=80 man --local-file "$unpacked/man/man1/evenkv.1" 2>/dev/null)"
fi
for file in README.md LICENSE CHANGELOG.md systemd/evenkv.service ops/prometheus/alerts.yaml docs/operate.md; do
  expect_that "$file is the repository's" cmp --silent "$unpacked/$file" "$REPOSITORY/${file/#systemd/ops\/systemd}"
done

# Packed again it is the same.
mkdir "$scratch/again"
CARGO_TARGET_DIR=$scratch/again EVENKV_BIN=$program "$REPOSITORY/scripts/dist" >/dev/null
expect_that "the same program gives the same archive" cmp --silent "$archive" "$scratch/again/dist/$(basename "$archive")"

# --- in an empty root

if [ "$(id -u)" != 0 ]; then
  echo "$TEST_NAME: left out: an empty root needs root"
elif ! grep -q 'It is static' "$unpacked/PROGRAM"; then
  echo "$TEST_NAME: left out: a program that is not static does not run in an empty root"
else
  root=$scratch/root
  mkdir -p "$root/etc"
  cp "$program" "$root/evenkv"
  port=$(free_port)
  echo "127.0.0.1 hosts.evenkv.test" >"$root/etc/hosts"
  echo "nameserver 127.53.0.99" >"$root/etc/resolv.conf"
  env -i PATH="$PATH" ADDRESS="hosts.evenkv.test:$port" chroot "$root" /evenkv >"$scratch/node.log" 2>&1 &
  pids[node]=$!
  wait_ready "127.0.0.1:$port"
  expect_that "a name of hosts is found" chroot "$root" /evenkv put key value --json --node "hosts.evenkv.test:$port" >/dev/null
  is_unknown() { ! chroot "$root" /evenkv get key --node "nobody.invalid:$port" 2>/dev/null; }
  expect_that "a name that nobody knows is not" is_unknown
  # shellcheck disable=SC2016 # Perl's
  if perl -MIO::Socket::INET -e '
      my $socket = IO::Socket::INET->new(Proto => "udp", LocalAddr => "127.53.0.99", LocalPort => 53) or exit 1;' 2>/dev/null; then
    # A name server for which every name is 127.0.0.1; it ends after a while by itself.
    perl -MIO::Socket::INET -e '
      alarm 60;
      my $socket = IO::Socket::INET->new(Proto => "udp", LocalAddr => "127.53.0.99", LocalPort => 53) or die;
      while (defined $socket->recv(my $asked, 512)) {
        my $end = 12;
        $end += 1 + ord substr($asked, $end, 1) while ord substr($asked, $end, 1);
        my $is_ipv4 = substr($asked, $end + 1, 2) eq "\0\1";
        my $answer = $is_ipv4 ? "\xc0\x0c\0\1\0\1\0\0\0\0\0\4\x7f\0\0\1" : "";
        $socket->send(substr($asked, 0, 2) . "\x81\x80\0\1\0" . chr($is_ipv4) . "\0\0\0\0" . substr($asked, 12, $end - 7) . $answer);
      }' >"$scratch/names.log" 2>&1 &
    pids[names]=$!
    value_by_dns() { [ "$(chroot "$root" /evenkv get key --raw --node "dns.evenkv.test:$port" 2>/dev/null)" = value ]; }
    expect_that "a name of the name server is found" wait_until 20 value_by_dns
  else
    echo "$TEST_NAME: left out: without Perl, or a port 53, no name server was asked"
  fi
fi

finish
