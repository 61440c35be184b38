#!/bin/sh
# Usage: scripts/failover.sh
#
# What users see when a Patroni cluster changes its primary: three nodes and etcd on the loopback, a
# switchover, a crash and the return of the node, while streams and queries run. For Linux with
# Debian's packages, by hand: CI does not run it. Takes about five minutes.
#
# The cluster runs in its own namespaces: no other user of the machine can connect to it. The kernel
# ends all of its processes with the first one, which ends with this script, however that ends.
set -eu

# Inside the namespaces, as root: $1 is "inside", $2 the cluster's folder, $3 the folder of
# Postgres's programs.
if [ "${1:-}" = inside ]; then
    folder=$2
    bin=$3
    # Standard input ends with the script outside.
    trap 'exit 1' TERM
    exec 3<&0
    { read -r _ <&3 || kill -TERM 1; } &
    ip link set lo up
    # Everything runs as the server's user: Postgres refuses to be root.
    as_server() { setpriv --reuid=postgres --regid=postgres --clear-groups env HOME="$folder" PATH="$bin:$PATH" "$@"; }
    start() {
        name=$1
        shift
        as_server setsid "$@" >"$folder/$name.log" 2>&1 </dev/null &
    }
    start etcd etcd --data-dir "$folder/etcd" --listen-client-urls http://127.0.0.1:23790 \
        --advertise-client-urls http://127.0.0.1:23790 --listen-peer-urls http://127.0.0.1:23800 \
        --initial-advertise-peer-urls http://127.0.0.1:23800 --initial-cluster default=http://127.0.0.1:23800
    for node in 1 2 3; do
        start "node$node" patroni "$folder/node$node.yml"
        # The first makes the cluster.
        [ "$node" != 1 ] || sleep 15
    done
    as_server "$folder/failover" "$folder/patroni" "$folder/password" 23811 23812 23813 </dev/null &
    wait $!
    exit
fi

cd "$(dirname "$0")/.."
. scripts/common.sh
check_arguments 0 "$@"
. scripts/setup-postgres.sh
command -v apt-get >/dev/null || die "Patroni and etcd come from Debian's packages"
if ! command -v patroni >/dev/null || ! command -v etcd >/dev/null || ! command -v ip >/dev/null; then
    echo "Installing patroni, etcd-server and iproute2 with apt-get (no service is started) ..."
    apt_install patroni etcd-server iproute2 || die "Could not be installed; see above"
fi
initdb=$(ls -d /usr/lib/postgresql/*/bin/initdb | tail -n 1)
bin=${initdb%/initdb}

binary=$(cargo bench --quiet --features deadpool --bench failover --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*failover[^"]*\)".*/\1/p')
# A superuser can run programs as the server's user, so it has a random password, in files that only
# that user can read.
umask 077
# shellcheck disable=SC2016
at_exit 'as_root rm -rf "${folder:-}"'
folder=$(mktemp -d /tmp/fraiseql-wire-failover.XXXXXX)
password=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
printf '%s\n' "$password" >"$folder/password"

# Patroni's defaults (ttl 30, loop_wait 10, retry_timeout 10) determine how long a failover takes.
for node in 1 2 3; do
    mkdir "$folder/node$node"
    cat >"$folder/node$node.yml" <<END
scope: failover
name: node$node
restapi: {listen: 127.0.0.1:2380$((node + 4)), connect_address: 127.0.0.1:2380$((node + 4))}
etcd3: {host: 127.0.0.1:23790}
bootstrap:
  dcs: {ttl: 30, loop_wait: 10, retry_timeout: 10, postgresql: {use_pg_rewind: true}}
  initdb: [encoding: UTF8, data-checksums]
  pg_hba: ["local all all trust", "host all,replication all 127.0.0.1/32 scram-sha-256"]
postgresql:
  listen: 127.0.0.1:2381$node
  connect_address: 127.0.0.1:2381$node
  data_dir: $folder/node$node/data
  bin_dir: $bin
  # Else a copy waits for a checkpoint of minutes.
  basebackup: [checkpoint: fast]
  authentication:
    superuser: {username: postgres, password: $password}
    replication: {username: postgres, password: $password}
    rewind: {username: postgres, password: $password}
  parameters: {unix_socket_directories: $folder/node$node, fsync: 'off'}
END
done

# How the program controls the cluster; it passes the name of a node. Each process is found by its
# own files.
cat >"$folder/patroni" <<END
#!/bin/sh
case \$1 in
    switchover) patronictl -c $folder/node1.yml switchover failover --leader "\$2" --force ;;
    crash)
        server=\$(head -n 1 "$folder/\$2/data/postmaster.pid")
        kill -9 \$(ps -e -o pid= -o args= | awk -v file="$folder/\$2.yml" '\$NF == file { print \$1 }') || true
        backends=\$(ps -o pid= --ppid "\$server") || true
        kill -9 "\$server" \$backends || true
        ;;
    return) setsid patroni "$folder/\$2.yml" >>"$folder/\$2.log" 2>&1 </dev/null & ;;
esac
END
cp "$binary" "$folder/failover"
chmod 700 "$folder/patroni" "$folder/failover"
as_root chown -R postgres: "$folder"

inside="unshare --net --pid --fork --kill-child --mount-proc"
# The shell inside reads from this pipe; its other end closes when this script ends.
lifeline=target/failover.lifeline
at_exit "rm -f '$lifeline'"
rm -f "$lifeline"
mkfifo "$lifeline"
# shellcheck disable=SC2086
as_root $inside sh "scripts/failover.sh" inside "$folder" "$bin" <"$lifeline" 9>&- &
running=$!
exec 9>"$lifeline"
at_exit 'exec 9>&-; wait "$running" || true'
wait "$running"
