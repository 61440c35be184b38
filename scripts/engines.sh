#!/bin/sh
# Usage: scripts/engines.sh [NAME...]
#
# Runs the checks of tests/engines against servers and poolers of several versions, and prints a
# table of results. Default: all of them. For Debian 12, as root; takes about 15 minutes.
#
# NAME: postgres-17, postgres-19, timescaledb, pgbouncer-1.18, pgbouncer-1.24, pgbouncer-1.24-off,
# pgbouncer-1.26, pgbouncer-1.26-off, odyssey, odyssey-off, pgpool-4.6, pglite or roapi. With -off,
# the pooler does not support prepared statements; PgBouncer 1.18 and pgpool never do.
#
# The newer versions run in chroots that debootstrap makes of Debian's newer releases, from the
# mirror of the machine's apt. They are removed at the end; with KEEP=yes they stay in
# target/engines, where the next run uses them. The complete output is in target/engines/*.txt.
# ENGINES_PROGRAM is the program with the checks, if it is not to be built.
#
# All servers run in their own namespaces: no other user of the machine can connect to them. The
# kernel ends all of their processes with the first one, which ends with this script, however that
# ends.
set -eu

all="postgres-17 timescaledb pgbouncer-1.18 pgbouncer-1.24-off pgbouncer-1.24 pgbouncer-1.26-off \
pgbouncer-1.26 odyssey-off odyssey pgpool-4.6 postgres-19 pglite roapi"

# Inside the namespaces: $1 is "inside", $2 the folder target/engines, $3 the program with the
# checks. The rest: the names.
if [ "${1:-}" = inside ]; then
    folder=$2
    program=$3
    shift 3
    ip link set lo up
    # Where the servers' user can read it, whatever the rights of the folders above it.
    mount --bind "$folder" /mnt
    PGPASSWORD=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    export PGPASSWORD

    # $1: a chroot, or / for this system. $2: a name for its files. The rest: a command.
    start() {
        root=$1
        log=$folder/$2.log
        shift 2
        chroot "$root" setpriv --reuid=postgres --regid=postgres --clear-groups \
            env HOME=/nonexistent setsid "$@" >"$log" 2>&1 </dev/null &
        started=$!
    }

    # Waits until a port is open.
    wait_for() {
        attempts=0
        until (exec 4<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; do
            attempts=$((attempts + 1))
            [ $attempts -lt 300 ] || { echo "nothing listens on port $1: see $log" >&2 && return 1; }
            sleep 0.1
        done
    }

    # A folder that only the server's user can read. $1: the chroot, $2: the name.
    new_folder() {
        rm -rf "$1/tmp/$2"
        mkdir -m 700 "$1/tmp/$2"
    }

    # $1: the chroot, $2: the version, $3: the port, $4: settings, $5: SQL that makes the relation.
    start_postgres() {
        mounts "$1"
        new_folder "$1" "data-$3"
        bin=/usr/lib/postgresql/$2/bin
        printf '%s\n' "$PGPASSWORD" >"$1/tmp/data-$3/password"
        chroot "$1" chown -R postgres: "/tmp/data-$3"
        chroot "$1" setpriv --reuid=postgres --regid=postgres --clear-groups "$bin/initdb" -A scram-sha-256 \
            -E UTF8 --locale=C.UTF-8 -U postgres --pwfile="/tmp/data-$3/password" -D "/tmp/data-$3/data" >/dev/null
        # shellcheck disable=SC2086
        start "$1" "postgres-$3" "$bin/postgres" -D "/tmp/data-$3/data" -p "$3" -c fsync=off \
            -c unix_socket_directories="/tmp/data-$3" $4
        wait_for "$3"
        psql_at "$3" "$5"
    }
    . tests/engines/relations.sh

    psql_at() { chroot "$folder/trixie" psql -h 127.0.0.1 -p "$1" -U postgres -d postgres -qX -v ON_ERROR_STOP=1 -c "$2" >/dev/null; }

    mounts() {
        [ ! -e "$1/proc/self" ] || return 0
        mount -t proc proc "$1/proc"
        mount -t tmpfs tmpfs "$1/dev/shm"
    }

    # The server of the poolers.
    server() {
        [ -n "${has_server:-}" ] || start_postgres "$folder/trixie" 17 5417 "" "$table; $endless; $recreate"
        has_server=yes
    }

    # $1: the chroot, $2: the port, $3: the maximum of prepared statements, or nothing.
    start_pgbouncer() {
        server
        mounts "$1"
        new_folder "$1" "pgbouncer-$2"
        cat >"$1/tmp/pgbouncer-$2/ini" <<END
[databases]
* = host=127.0.0.1 port=5417
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $2
unix_socket_dir =
auth_type = md5
auth_file = /tmp/pgbouncer-$2/users
pool_mode = transaction
default_pool_size = 4
${3:+max_prepared_statements = $3}
END
        printf '"probe" "%s"\n' "$PGPASSWORD" >"$1/tmp/pgbouncer-$2/users"
        chroot "$1" chown -R postgres: "/tmp/pgbouncer-$2"
        start "$1" "pgbouncer-$2" /usr/sbin/pgbouncer -q "/tmp/pgbouncer-$2/ini"
        wait_for "$2"
    }

    # $1: the port, $2: whether prepared statements are supported.
    start_odyssey() {
        server
        mounts "$folder/sid"
        new_folder "$folder/sid" "odyssey-$1"
        cat >"$folder/sid/tmp/odyssey-$1/conf" <<END
daemonize no
log_to_stdout yes
log_format "%p %t %l [%i %s] (%c) %m\n"
workers 1
listen {
    host "127.0.0.1"
    port $1
    tls "disable"
}
storage "server" {
    type "remote"
    host "127.0.0.1"
    port 5417
}
database default {
    user default {
        authentication "md5"
        password "$PGPASSWORD"
        storage "server"
        storage_user "probe"
        storage_password "$PGPASSWORD"
        pool "transaction"
        pool_size 4
        pool_discard no
        pool_reserve_prepared_statement $2
    }
}
END
        chroot "$folder/sid" chown -R postgres: "/tmp/odyssey-$1"
        start "$folder/sid" "odyssey-$1" /usr/bin/odyssey "/tmp/odyssey-$1/conf"
        wait_for "$1"
    }

    start_pgpool() {
        server
        trixie=$folder/trixie
        new_folder "$trixie" pgpool
        cat >"$trixie/tmp/pgpool/conf" <<END
backend_clustering_mode = 'streaming_replication'
listen_addresses = '127.0.0.1'
port = 6446
pcp_listen_addresses = ''
unix_socket_directories = '/tmp/pgpool'
pcp_socket_dir = '/tmp/pgpool'
wd_ipc_socket_dir = '/tmp/pgpool'
pid_file_name = '/tmp/pgpool/pid'
logdir = '/tmp/pgpool'
backend_hostname0 = '127.0.0.1'
backend_port0 = 5417
backend_flag0 = 'ALWAYS_PRIMARY|DISALLOW_TO_FAILOVER'
sr_check_period = 0
num_init_children = 16
max_pool = 1
enable_pool_hba = on
pool_passwd = 'pool_passwd'
END
        : >"$trixie/tmp/pgpool/pcp"
        echo "host all all 127.0.0.1/32 md5" >"$trixie/tmp/pgpool/hba"
        printf 'probe:TEXT%s\n' "$PGPASSWORD" >"$trixie/tmp/pgpool/pool_passwd"
        chroot "$trixie" chown -R postgres: /tmp/pgpool
        start "$trixie" pgpool /usr/sbin/pgpool -n -f /tmp/pgpool/conf -F /tmp/pgpool/pcp -a /tmp/pgpool/hba
        wait_for 6446
    }

    for name in "$@"; do
        echo "$name ..." >&2
        option=
        database=postgres
        user=probe
        case $name in
            postgres-17) server && port=5417 ;;
            postgres-19) port=5419 && start_postgres "$folder/sid" 19 $port "" "$table; $endless; $recreate" ;;
            timescaledb)
                port=5420
                start_postgres "$folder/trixie" 17 $port "-c shared_preload_libraries=timescaledb" \
                    "create extension timescaledb; create table documents (id int not null, data jsonb)"
                psql_at $port "select create_hypertable('documents', 'id', chunk_time_interval => 4000);
                    insert into documents $documents; $endless; $recreate"
                ;;
            pgbouncer-1.18) port=6418 && start_pgbouncer / $port "" ;;
            pgbouncer-1.24) port=6424 && start_pgbouncer "$folder/trixie" $port 200 ;;
            pgbouncer-1.24-off) port=6425 && start_pgbouncer "$folder/trixie" $port 0 ;;
            pgbouncer-1.26) port=6426 && start_pgbouncer "$folder/sid" $port 2 ;;
            pgbouncer-1.26-off) port=6427 && start_pgbouncer "$folder/sid" $port 0 ;;
            odyssey) port=6432 && start_odyssey $port yes ;;
            odyssey-off) port=6433 && start_odyssey $port no ;;
            pgpool-4.6) port=6446 && start_pgpool ;;
            pglite)
                port=6450
                user=postgres
                # It has no users and no passwords, and runs one query at a time and to its end:
                # 200,000 rows stand for an endless result.
                # Node 18, which Debian 12 has, needs a flag for what the server uses.
                flag=
                [ "$(node -p 'typeof CustomEvent')" = function ] || flag=--experimental-global-customevent
                # shellcheck disable=SC2086
                start / pglite node $flag /mnt/pglite/node_modules/@electric-sql/pglite-socket/dist/scripts/server.js \
                    --port=$port --host=127.0.0.1 --max-connections=10
                wait_for $port
                psql_at $port "$table; $recreate; create view endless as
                    select data from documents, generate_series(1, 10)"
                ;;
            roapi)
                port=6451
                option=--text
                awk 'BEGIN { for (i = 1; i <= 20000; i++) {
                    pad = sprintf("%200s", ""); gsub(" ", "x", pad)
                    printf "{\"id\": %d, \"data\": \"{\\\"id\\\": %d, \\\"name\\\": \\\"n%d\\\", \\\"group\\\": %d, \\\"pad\\\": \\\"%s\\\"}\"}\n",
                        i, i, i, i % 10, pad } }' >"$folder/documents.ndjson"
                # It has no cancel requests either.
                for _ in 1 2 3 4 5 6 7 8 9 10; do cat "$folder/documents.ndjson"; done >"$folder/endless.ndjson"
                start / roapi /mnt/roapi/roapi --disable-read-only --addr-http 127.0.0.1:6452 \
                    --addr-postgres 127.0.0.1:$port --table documents=/mnt/documents.ndjson \
                    --table endless=/mnt/endless.ndjson
                wait_for $port
                ;;
        esac
        url="postgres://$user@127.0.0.1:$port/$database?sslmode=disable&connect_timeout=10"
        "$program" "$url" $option >"$folder/$name.txt" 2>"$folder/$name.err" || true
        # The server of the poolers stays.
        case $name in postgres-17) ;; *) kill "$started" 2>/dev/null || true ;; esac
    done
    exit
fi

cd "$(dirname "$0")/.."
. scripts/common.sh
check_arguments 13 "$@"
for name in "$@"; do
    case " $all " in *" $name "*) ;; *) misused "unknown name: $name" ;; esac
done
names=${*:-$all}
[ "$(id -u)" = 0 ] || die "Run this as root: it makes chroots and namespaces"
. scripts/chroot.sh

folder=$PWD/target/engines
mkdir -p "$folder"
make_chroot "$folder/trixie" trixie postgresql-17 postgresql-17-timescaledb pgbouncer pgpool2
case $names in
    *-1.26* | *odyssey* | *-19*) make_chroot "$folder/sid" sid pgbouncer odyssey experimental:postgresql-19 ;;
esac
need=
case $names in *1.18*) [ -x /usr/sbin/pgbouncer ] || need="$need pgbouncer" ;; esac
command -v ip >/dev/null || need="$need iproute2"
case $names in *pglite*) command -v npm >/dev/null || need="$need npm" ;; esac
case $names in *roapi*) python3 -m pip --version >/dev/null 2>&1 || need="$need python3-pip" ;; esac
# shellcheck disable=SC2086
[ -z "$need" ] || apt_install $need || die "Could not be installed; see above:$need"

case $names in *pglite*)
    if [ ! -d "$folder/pglite" ]; then
        at_exit "rm -rf '$folder/pglite.new'"
        rm -rf "$folder/pglite.new"
        for package in pglite@0.5.14 pglite-socket@0.2.17; do
            archive=electric-sql-${package%@*}-${package#*@}.tgz
            unpacked=$folder/pglite.new/node_modules/@electric-sql/${package%@*}
            mkdir -p "$unpacked"
            # Its cache and its logs end with the folder.
            (cd "$unpacked" && npm pack --cache "$folder/pglite.new/cache" --loglevel=error \
                --ignore-scripts "@electric-sql/$package" >/dev/null)
            grep -q "^$(sha512sum "$unpacked/$archive" | cut -d ' ' -f 1)  @electric-sql/$package\$" scripts/checksums.txt ||
                die "What npm has fetched as $package is not what scripts/checksums.txt says: it is not unpacked"
            tar xzf "$unpacked/$archive" -C "$unpacked" --strip-components 1
        done
        rm -rf "$folder/pglite.new/cache"
        chmod -R a+rX "$folder/pglite.new"
        mv "$folder/pglite.new" "$folder/pglite"
    fi
    ;;
esac
case $names in *roapi*)
    if [ ! -d "$folder/roapi" ]; then
        at_exit "rm -rf '$folder/roapi.new'"
        rm -rf "$folder/roapi.new"
        python3 -m pip download --quiet --no-cache-dir --no-deps --only-binary :all: --require-hashes \
            --dest "$folder/roapi.new" -r scripts/requirements-engines.txt
        python3 -m zipfile -e "$folder"/roapi.new/*.whl "$folder/roapi.new/wheel"
        mv "$folder"/roapi.new/wheel/*.data/scripts/roapi "$folder/roapi.new/roapi"
        chmod -R a+rX "$folder/roapi.new"
        chmod a+rx "$folder/roapi.new/roapi"
        mv "$folder/roapi.new" "$folder/roapi"
    fi
    ;;
esac
[ -n "${ENGINES_PROGRAM:-}" ] || ENGINES_PROGRAM=$(cargo test --quiet --all-features --test engines --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*engines[^"]*\)".*/\1/p')
for name in $names; do rm -f "$folder/$name.txt"; done

# That of PgBouncer 1.18, which runs in this system.
at_exit "end_isolated; rm -rf /tmp/pgbouncer-6418"
# shellcheck disable=SC2086
isolate --net bash scripts/engines.sh inside "$folder" "$ENGINES_PROGRAM" $names

# Checks of one subject share a column. What does not work is named.
echo
# shellcheck disable=SC2086
(cd "$folder" && awk -F '\t' '
    BEGIN {
        split("rows conditions cancel shared statements resume parallel", columns, " ")
        split("connect stream where_rust order_by body server_error", checks, " ")
        for (i in checks) column[checks[i]] = "rows"
        column["where_sql"] = column["filter"] = column["count"] = "conditions"
        column["dropped"] = column["cancelled"] = column["timeout_of_query"] = "cancel"
        column["changes"] = "statements"
        column["reuse"] = column["fetch"] = "shared"
        for (i = 5; i <= 7; i++) column[columns[i]] = columns[i]
        head = "| engine |"; line = "|---|"
        for (i = 1; i <= 7; i++) { head = head " " columns[i] " |"; line = line "---|" }
        print head " CPU of a short query | without the cache |\n" line "---|---|"
    }
    function finish() {
        row = "| " engine " |"
        for (i = 1; i <= 7; i++) row = row " " (columns[i] in bad ? bad[columns[i]] : seen[columns[i]] ? "works" : "missing") " |"
        if (engine != "") print row " " cpu " |"
        split("", bad); split("", seen); cpu = "| "
    }
    FNR == 1 { finish(); engine = FILENAME; sub(/\.txt$/, "", engine) }
    $1 == "short_queries" && $2 == "works" { cpu = $3; sub(/ of CPU, without the statement cache/, " |", cpu) }
    { seen[column[$1]] = 1 }
    $2 != "works" { bad[column[$1]] = (bad[column[$1]] == "" ? "" : bad[column[$1]] ", ") $2 ": " $1 }
    END { finish() }' $(for name in $names; do echo "$name.txt"; done))
echo
for name in $names; do
    awk -F '\t' -v name="$name" '$3 != "" { print name ": " $1 ": " $2 ": " $3 }' "$folder/$name.txt"
done
for name in $names; do
    ! grep -q "	wrong	" "$folder/$name.txt" || die "Wrong answers: $folder/$name.txt"
done
