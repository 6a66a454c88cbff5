package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/etcdstore"
	"github.com/apitoken-go/apitoken/store/mysqlstore"
	"github.com/apitoken-go/apitoken/store/pgstore"
	"github.com/apitoken-go/apitoken/store/redisstore"
)

// Stores on servers, by URL. What a service's own code says to its store stands in the URL's query, since another process must say
// the same: two that differ don't agree on what counts as lost.

// parameters are the query of a store's URL: whatever is not taken is a mistake.
type parameters struct {
	of  string // what URL
	v   url.Values
	err error
}

func parametersOf(engine engine, u *url.URL) *parameters {
	q := &parameters{of: "the URL of the store on " + string(engine), v: u.Query()}
	u.RawQuery = ""
	return q
}

func (q *parameters) text(name string) string {
	s := q.v.Get(name)
	q.v.Del(name)
	return s
}

// flag is set by its name alone, or by 1 and true.
func (q *parameters) flag(name string) bool {
	if !q.v.Has(name) {
		return false
	}
	s := q.text(name)
	on, err := strconv.ParseBool(s)
	if s != "" && err != nil {
		q.err = usage("It is 1 or 0.", "%s: %s cannot be read", q.of, name)
	}
	return s == "" || on
}

func (q *parameters) number(name string) int {
	s := q.text(name)
	n, err := strconv.Atoi(cmp.Or(s, "0"))
	if err != nil || n < 0 {
		q.err = usage("It is a number.", "%s: %s cannot be read", q.of, name)
	}
	return n
}

// rest refuses what nobody has taken.
func (q *parameters) rest() error {
	for name := range q.v {
		return usage("docs/cli.md has the parameters of each engine.", "%s: %q is no parameter", q.of, name)
	}
	return q.err
}

// inNamespace is the store of a namespace, "" being st itself.
func inNamespace[S store.Store](st store.Store, of func(string) S) func(string) store.Store {
	return func(name string) store.Store {
		if name == "" {
			return st
		}
		return of(name)
	}
}

// quiet is where stores' logs go: what an operator has to know they say as errors.
var quiet = slog.New(slog.DiscardHandler)

func (a *app) openPostgres(ctx context.Context, spec string, make bool) (*opened, error) {
	c, err := pgxpool.ParseConfig(spec)
	if err != nil {
		return nil, usage("It is postgres://USER@HOST/DATABASE.", "the URL of the store cannot be read")
	}
	name := fmt.Sprintf("postgres %s:%d/%s", c.ConnConfig.Host, c.ConnConfig.Port, c.ConnConfig.Database)
	c.MaxConns = 4
	c.ConnConfig.ConnectTimeout = 10 * time.Second
	pool, err := pgxpool.NewWithConfig(ctx, c)
	if err != nil {
		return nil, a.openError(name, err)
	}
	st, err := pgstore.New(ctx, pool, &pgstore.Options{Manual: !make, Timeout: a.timeout})
	if err != nil {
		pool.Close()
		return nil, a.openError(name, err)
	}
	return &opened{named: inNamespace(st, st.Namespace), name: name, server: func(ctx context.Context, d *diagnosis) { diagnosePostgres(ctx, d, pool) },
		close: func() error { defer pool.Close(); return st.Close() }}, nil
}

// mysqlConfig reads mysql://USER@HOST:PORT/DATABASE, with socket= for a Unix socket and tls= as the driver has it.
func mysqlConfig(spec string) (*mysql.Config, *mysqlstore.Options, error) {
	u, err := url.Parse(spec)
	if err != nil || strings.Trim(u.Path, "/") == "" {
		return nil, nil, usage("It is mysql://USER@HOST:PORT/DATABASE.", "the URL of the store cannot be read")
	}
	q := parametersOf(mysqlDB, u)
	c := mysql.NewConfig()
	c.User, c.DBName, c.Net, c.Logger = u.User.Username(), strings.Trim(u.Path, "/"), "tcp", &mysql.NopLogger{}
	c.Passwd = os.Getenv("MYSQL_PWD")
	if s, has := u.User.Password(); has {
		c.Passwd = s
	}
	c.Addr = net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "3306"))
	if s := q.text("socket"); s != "" {
		c.Net, c.Addr = "unix", s
	}
	c.TLSConfig = q.text("tls")
	o := &mysqlstore.Options{Prefix: q.text("prefix"), InsecureNotDurable: q.flag("not-durable")}
	return c, o, q.rest()
}

func (a *app) openMySQL(ctx context.Context, spec string, make bool) (*opened, error) {
	c, o, err := mysqlConfig(spec)
	if err != nil {
		return nil, err
	}
	name := "mysql " + c.Addr + "/" + c.DBName
	o.Manual, o.Timeout, o.MaxConns = !make, a.timeout, 4
	st, err := mysqlstore.Open(ctx, c, o)
	if err != nil {
		return nil, a.openError(name, err)
	}
	return &opened{named: inNamespace(st, st.Namespace), name: name, close: st.Close, server: func(_ context.Context, d *diagnosis) {
		d.say("ok", "schema", "", "the tables are there, on %s", c.Addr)
		if o.InsecureNotDurable {
			d.say("warn", "durability", "", "not looked at: the URL says not-durable")
		} else { // or it would not have opened
			d.say("ok", "durability", "", "what is acknowledged is on the disk")
		}
	}}, nil
}

// redisClient reads redis://USER@HOST:PORT/DB. The password may come by REDISCLI_AUTH, as for redis-cli.
func redisClient(spec string) (*redis.Client, *redisstore.Options, error) {
	u, err := url.Parse(spec)
	if err != nil {
		return nil, nil, usage("It is redis://HOST:PORT.", "the URL of the store cannot be read") // err may hold the password
	}
	q := parametersOf(redisDB, u)
	o := &redisstore.Options{Prefix: q.text("prefix"), WaitReplicas: q.number("wait-replicas"), WaitAOF: q.flag("wait-aof"), RestartLosesNothing: q.flag("restart-loses-nothing"),
		InsecureMayEvict: q.flag("may-evict"), InsecureMayLoseWrites: q.flag("may-lose-writes"), TrustServerConfig: q.flag("trust-server-config"), Log: quiet}
	if err := q.rest(); err != nil {
		return nil, nil, err
	}
	c, err := redis.ParseURL(u.String())
	if err != nil {
		return nil, nil, usage("It is redis://HOST:PORT.", "the URL of the store cannot be read")
	}
	c.Password, c.ContextTimeoutEnabled = cmp.Or(c.Password, os.Getenv("REDISCLI_AUTH")), true
	return redis.NewClient(c), o, nil
}

func (a *app) openRedis(ctx context.Context, spec string, make bool) (*opened, error) {
	client, o, err := redisClient(spec)
	if err != nil {
		return nil, err
	}
	addr := client.Options().Addr
	name := "redis " + addr
	o.Timeout = a.timeout
	fail := func(err error) (*opened, error) { return nil, errors.Join(err, client.Close()) }
	if !o.RestartLosesNothing && !make {
		if err := sameServer(ctx, client, cmp.Or(o.Prefix, "apitoken"), a.namespace); err != nil {
			return fail(err)
		}
	}
	st, err := redisstore.New(ctx, client, o)
	if err != nil {
		return fail(a.openError(name, err))
	}
	return &opened{named: inNamespace(st, st.Namespace), name: name,
		close: func() error { return errors.Join(st.Close(), client.Close()) }}, nil
}

// sameServer refuses to open a namespace after its server was started again or another one was promoted: unless the service's
// options say that nothing is lost by that, opening counts it as a loss, for good, and a look must not.
func sameServer(ctx context.Context, client *redis.Client, prefix, namespace string) error {
	was, err := client.HGet(ctx, "{"+prefix+":"+namespace+"}m", "replid").Result()
	switch {
	case errors.Is(err, redis.Nil):
		return &failure{code: notFound, what: "no service has been started on this store", do: "Is it the right one, and the right prefix= and --namespace?"}
	case err != nil:
		return nil // opening says what is wrong
	}
	info, err := client.Info(ctx, "replication").Result()
	if is := infoOf(info)["master_replid"]; err != nil || is == was {
		return nil
	}
	return &failure{code: refused, what: "the Redis server was started again, or another was promoted, since the service wrote to it",
		do: "Start the service once, which decides whether something is lost; or add ?restart-loses-nothing to the URL if its redisstore.Options say so."}
}

// etcdClient reads etcd://HOST:PORT,HOST:PORT, or etcds:// for TLS, with cacert, cert and key as files. User and password are those
// of the URL, or ETCDCTL_USER and ETCDCTL_PASSWORD, as for etcdctl.
func etcdClient(ctx context.Context, spec string) (*clientv3.Client, *parameters, error) {
	scheme, rest, _ := strings.Cut(spec, "://")
	hosts, query, _ := strings.Cut(rest, "?")
	user := ""
	if i := strings.LastIndex(hosts, "@"); i >= 0 {
		user, hosts = hosts[:i], hosts[i+1:]
	}
	u := &url.URL{RawQuery: query}
	q := parametersOf(etcdDB, u)
	login, err := url.Parse("etcd://" + user + "@x")
	if err != nil || strings.Trim(hosts, "/") == "" {
		return nil, nil, usage("It is etcd://HOST:PORT,HOST:PORT.", "the URL of the store cannot be read")
	}
	c := clientv3.Config{Context: ctx, DialTimeout: 10 * time.Second, DialKeepAliveTime: 5 * time.Second, DialKeepAliveTimeout: 5 * time.Second, Logger: zap.NewNop(),
		Username: cmp.Or(login.User.Username(), os.Getenv("ETCDCTL_USER")), Password: os.Getenv("ETCDCTL_PASSWORD")}
	if s, has := login.User.Password(); has {
		c.Password = s
	}
	plain := map[string]string{"etcd": "http://", "etcds": "https://"}[scheme]
	for _, h := range strings.Split(strings.Trim(hosts, "/"), ",") {
		c.Endpoints = append(c.Endpoints, plain+h)
	}
	if scheme == "etcds" {
		c.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
		if file := q.text("cacert"); file != "" {
			if c.TLS.RootCAs, err = pool(file); err != nil {
				return nil, nil, err
			}
		}
		if cert, key := q.text("cert"), q.text("key"); cert != "" || key != "" {
			pair, err := tls.LoadX509KeyPair(cert, key)
			if err != nil {
				return nil, nil, err
			}
			c.TLS.Certificates = []tls.Certificate{pair}
		}
	}
	client, err := clientv3.New(c)
	return client, q, err
}

func (a *app) openEtcd(ctx context.Context, spec string, make bool) (*opened, error) {
	// The client lives as long as the store; ctx only bounds what is asked for here.
	client, q, err := etcdClient(context.WithoutCancel(ctx), spec)
	if err != nil {
		return nil, err
	}
	o := &etcdstore.Options{Prefix: q.text("prefix"), Timeout: a.timeout, Log: quiet}
	where := q.text("events")
	name := "etcd " + strings.Join(client.Endpoints(), ",")
	closing := client.Close
	fail := func(err error) (*opened, error) { return nil, errors.Join(err, closing()) }
	if err := q.rest(); err != nil {
		return fail(err)
	}
	switch where {
	case "":
		return fail(usage("Add ?events=etcd where etcdstore.Options.Events is nil; else &events= and that store, as for --store.", "the URL of the store does not say where the service keeps its events"))
	case "etcd":
	default:
		if e, _ := engineOf(where); e == etcdDB {
			return fail(usage("It is etcd, or a store on another engine.", "%s: events cannot be read", q.of))
		}
		events, err := a.openOrMake(ctx, where, false, make)
		if err != nil {
			return fail(err)
		}
		closing = func() error { return errors.Join(client.Close(), events.close()) }
		o.Events = events.named
	}
	st, err := etcdstore.New(ctx, client, o)
	if err != nil {
		return fail(a.openError(name, err))
	}
	return &opened{named: inNamespace(st, st.Namespace), name: name, server: func(ctx context.Context, d *diagnosis) { diagnoseEtcd(ctx, d, client) },
		close: func() error { return errors.Join(st.Close(), closing()) }}, nil
}

// diagnoseEtcd looks at each member.
func diagnoseEtcd(ctx context.Context, d *diagnosis, client *clientv3.Client) {
	for _, at := range client.Endpoints() {
		one, cancel := context.WithTimeout(ctx, 5*time.Second)
		s, err := client.Status(one, at)
		cancel()
		switch {
		case err != nil:
			d.say("warn", "member", "Look at the member and the network.", "%s does not answer: %v", at, err)
		case len(s.Errors) > 0:
			d.say("bad", "member", "etcdctl alarm list says more.", "%s: %s", at, strings.Join(s.Errors, ", "))
		case s.DbSizeQuota > 0 && s.DbSize > s.DbSizeQuota/10*9:
			d.say("bad", "disk", "Defragment, or raise --quota-backend-bytes: a cluster that is full takes no writes, revocations included.", "%s holds %s of its %s", at, size(uint64(s.DbSize)), size(uint64(s.DbSizeQuota)))
		default:
			d.say("ok", "member", "", "%s answers, etcd %s, %s", at, s.Version, size(uint64(s.DbSize)))
		}
	}
}
