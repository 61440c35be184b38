#!/bin/sh
# What users see when a cluster of Patroni changes its primary: three nodes and etcd on the loopback, a switchover, a crash
# and the return of the node, while streams and queries run. Linux with Debian's packages; about five minutes.
set -eu
cd "$(dirname "$0")/.."
. scripts/setup-postgres.sh
command -v apt-get >/dev/null || die "Patroni and etcd come from Debian's packages"
if ! command -v patroni >/dev/null || ! command -v etcd >/dev/null; then
    echo "Installing patroni and etcd-server with apt-get (no service is started) ..."
    policy=/usr/sbin/policy-rc.d
    own_policy=
    if [ ! -e "$policy" ]; then
        own_policy=yes
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod +x "$policy"
    fi
    installed=yes
    apt_install patroni etcd-server || installed=no
    [ -n "$own_policy" ] && as_root rm -f "$policy"
    [ "$installed" = yes ] || die "Could not be installed; see above"
fi
initdb=$(ls -d /usr/lib/postgresql/*/bin/initdb | tail -n 1)
bin=${initdb%/initdb}

cargo bench --quiet --features deadpool --bench failover --no-run
folder=$(mktemp -d /tmp/fraiseql-wire-failover.XXXXXX)
# A superuser can run programs as the server's user: no other user of the machine may log in.
password=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
cleanup() {
    as_root pkill -9 -f "$folder" || true
    as_root rm -rf "$folder"
}
trap cleanup EXIT
trap 'exit 1' INT TERM
umask 077
echo "$password" >"$folder/password"

# Everything runs as the server's user: Postgres refuses to be root.
as_server() { as_root setpriv --reuid=postgres --regid=postgres --clear-groups env HOME="$folder" PATH="$bin:$PATH" "$@"; }
start() {
    name=$1
    shift
    # A session of its own, so that no signal to this script comes to it.
    as_server setsid "$@" >"$folder/$name.log" 2>&1 &
}
start etcd etcd --data-dir "$folder/etcd" --listen-client-urls http://127.0.0.1:23790 \
    --advertise-client-urls http://127.0.0.1:23790 --listen-peer-urls http://127.0.0.1:23800 \
    --initial-advertise-peer-urls http://127.0.0.1:23800 --initial-cluster default=http://127.0.0.1:23800
as_root chown -R postgres: "$folder"

# Patroni's defaults (ttl 30, loop_wait 10, retry_timeout 10), which decide how long a failover takes.
for node in 1 2 3; do
    as_server mkdir -p "$folder/node$node"
    as_server tee "$folder/node$node.yml" >/dev/null <<EOF
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
EOF
    start "patroni$node" patroni "$folder/node$node.yml"
    # The first makes the cluster.
    [ "$node" = 1 ] && sleep 15
done

# What the program has done to the cluster: it gives the name of a node.
cat >"$folder/patroni" <<EOF
#!/bin/sh
case \$1 in
    switchover) patronictl -c $folder/node1.yml switchover failover --leader "\$2" --force ;;
    crash) pkill -9 -f "patroni $folder/\$2.yml" || true
           pkill -9 -f "$folder/\$2/data" || true
           pkill -9 -f "postgres: failover: .*\$2" || true
           head -n 1 $folder/\$2/data/postmaster.pid | xargs kill -9 || true ;;
    return) setsid patroni $folder/\$2.yml >>$folder/\$2.log 2>&1 & ;;
esac
EOF
chmod 755 "$folder/patroni"
as_root chown -R postgres: "$folder"
binary=$(cargo bench --quiet --features deadpool --bench failover --no-run --message-format=json | sed -n 's/.*"executable":"\([^"]*failover[^"]*\)".*/\1/p')
cp "$binary" "$folder/failover"
chmod 755 "$folder/failover"
as_server "$folder/failover" "$folder/patroni" "$folder/password" 23811 23812 23813
