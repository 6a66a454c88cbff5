package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/admin"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/boltstore"
	"github.com/apitoken-go/apitoken/store/mysqlstore"
	"github.com/apitoken-go/apitoken/store/pgstore"
	"github.com/apitoken-go/apitoken/store/redisstore"
	"github.com/apitoken-go/apitoken/store/sqlitestore"
)

// service is a token service: one that runs elsewhere, or one that this process started on a store.
type service struct {
	*admin.Client
	where  string
	prefix bool // that of its opaque tokens is known: it runs elsewhere, or its store or the caller says it
	close  func() error
}

// mayMake refuses to make secrets that the service would not take.
func (s *service) mayMake() error {
	if s.prefix {
		return nil
	}
	return usage("Give what the service's Config.Prefix is by --prefix; where it has none, at.", "the store does not say how the service's keys and secrets begin")
}

// connect finds the service. claims are what a token says of the service, if there is one: nil otherwise.
func (a *app) connect(ctx context.Context, claims *claims) (*service, error) {
	if at := setting(a.admin, "APITOKEN_ADMIN"); at != "" {
		return a.dial(at)
	}
	spec, err := a.storeSpec()
	if err != nil {
		return nil, err
	}
	if spec == "" {
		return nil, usage("Give --store FILE, or --admin SOCKET-OR-URL.", "which service?")
	}
	engine, path := engineOf(spec)
	if engine.isFile() && answers(path+admin.Suffix) {
		return a.dial(path + admin.Suffix)
	}
	st, err := a.open(ctx, spec, false)
	if err != nil {
		return nil, err
	}
	f, err := factsOf(ctx, st)
	if err != nil {
		return nil, errors.Join(err, st.close())
	}
	svc, err := a.start(ctx, st, path, f, claims, apitoken.RefuseRestored)
	if err != nil {
		return nil, errors.Join(err, st.close())
	}
	return &service{Client: admin.Local(svc, admin.Options{Backup: st.backup}).As(a.actor()), where: st.name, prefix: f.prefix != "" || a.prefix != "",
		close: func() error { return errors.Join(svc.Close(), st.close()) }}, nil
}

// answers reports whether a process listens on a socket.
func answers(path string) bool {
	c, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// dial makes a client of a service that runs.
func (a *app) dial(at string) (*service, error) {
	none := func() error { return nil }
	if !strings.Contains(at, "://") {
		if _, err := os.Stat(at); err != nil {
			return nil, &failure{code: unavailable, what: "no admin socket at " + at, err: errors.Unwrap(err),
				do: "Is the service running, and does it call admin.Serve? Without a service give --store."}
		}
		return &service{Client: admin.Dial(at).As(a.actor()), prefix: true, where: at, close: none}, nil
	}
	u, err := url.Parse(at)
	if err != nil || u.User != nil {
		return nil, usage("It is https://HOST/PATH, and the API key comes by --api-key-file.", "--admin cannot be read")
	}
	path := setting(a.keyFile, "APITOKEN_API_KEY_FILE")
	if path == "" {
		return nil, usage("Put the API key into a file of mode 0600 and name it by --api-key-file.", "an https URL needs an API key")
	}
	key, err := a.secret(path)
	if err != nil {
		return nil, err
	}
	var t *tls.Config
	if a.caFile != "" {
		roots, err := pool(a.caFile)
		if err != nil {
			return nil, err
		}
		t = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	c, err := admin.NewClient(at, key, t)
	if err != nil {
		return nil, err
	}
	return &service{Client: c.As(a.actor()), prefix: true, where: at, close: none}, nil
}

// pool are the CAs of a PEM file.
func pool(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(pem) {
		return nil, usage("", "%s holds no certificate", file)
	}
	return p, nil
}

// secret reads one secret: the first line of a file, or of the standard input.
func (a *app) secret(path string) (apitoken.Secret, error) {
	text, err := a.read(path, 64<<10)
	if err != nil {
		return apitoken.Secret{}, err
	}
	line, rest, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
	if line = strings.TrimSpace(line); line == "" || strings.TrimSpace(rest) != "" {
		return apitoken.Secret{}, usage("It is one line.", "%s holds no secret, or more than one", nameOf(path))
	}
	return apitoken.NewSecret(line), nil
}

func nameOf(path string) string {
	if path == "-" {
		return "the standard input"
	}
	return path
}

// read reads a file, or the standard input, up to a limit.
func (a *app) read(path string, limit int64) ([]byte, error) {
	in := a.in
	if path != "-" {
		if looksSecret(path) {
			return nil, usage("Pipe it in, or give a file: what stands on a command line is seen by other users and kept by shells.", "a token is no file name")
		}
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = usage("", "%s is over %d KiB", nameOf(path), limit>>10)
	}
	return b, err
}

// storeSpec is what --store, --store-file or the environment say.
func (a *app) storeSpec() (string, error) {
	if a.storeFile != "" {
		if a.store != "" {
			return "", usage("", "--store and --store-file say the same thing: give one")
		}
		s, err := a.secret(a.storeFile)
		return s.Reveal(), err
	}
	return setting(a.store, "APITOKEN_STORE"), checkSpec(a.store)
}

// checkSpec refuses a password in an argument.
func checkSpec(spec string) error {
	engine, _ := engineOf(spec)
	if engine.isFile() {
		return nil
	}
	scheme, rest, _ := strings.Cut(spec, "://")
	if engine == etcdDB { // several hosts are no URL
		first, more, _ := strings.Cut(rest, ",")
		_, query, _ := strings.Cut(more, "?")
		if rest = first; query != "" {
			rest += "?" + query
		}
	}
	u, err := url.Parse(scheme + "://" + rest)
	if err != nil {
		return usage("It is postgres://USER@HOST/DATABASE, mysql://USER@HOST/DATABASE, redis://HOST:PORT or etcd://HOST:PORT.", "the URL of the store cannot be read") // err holds the URL, and that its password
	}
	if _, has := u.User.Password(); has || u.Query().Has("password") {
		return usage("Put the whole URL into a file named by --store-file; PGPASSWORD, MYSQL_PWD, REDISCLI_AUTH and ETCDCTL_PASSWORD will do too.", "a password is not taken from an argument")
	}
	return checkSpec(u.Query().Get("events"))
}

type engine string

const (
	bolt     engine = "bbolt"
	sqlite   engine = "SQLite"
	postgres engine = "Postgres"
	mysqlDB  engine = "MySQL"
	redisDB  engine = "Redis"
	etcdDB   engine = "etcd"
)

// isFile reports an engine whose store is a file, and whose service may have a socket beside it.
func (e engine) isFile() bool { return e == bolt || e == sqlite }

// schemes are how the URLs of stores begin.
var schemes = map[string]engine{"postgres": postgres, "postgresql": postgres, "mysql": mysqlDB, "redis": redisDB, "rediss": redisDB, "etcd": etcdDB, "etcds": etcdDB}

// engineOf tells the engine of a store, and the path of its file.
func engineOf(spec string) (engine, string) {
	scheme, _, isURL := strings.Cut(spec, "://")
	switch {
	case isURL && schemes[scheme] != "":
		return schemes[scheme], ""
	case strings.HasPrefix(spec, "sqlite:"):
		return sqlite, strings.TrimPrefix(spec, "sqlite:")
	case strings.HasPrefix(spec, "bolt:"):
		return bolt, strings.TrimPrefix(spec, "bolt:")
	}
	if f, err := os.Open(spec); err == nil {
		defer f.Close()
		head := make([]byte, 16)
		if _, err := io.ReadFull(f, head); err == nil && string(head) == "SQLite format 3\x00" {
			return sqlite, spec
		}
	}
	return bolt, spec
}

// opened is a store that this process opened.
type opened struct {
	store.Store
	named    func(namespace string) store.Store
	engine   engine
	name     string // fit to be shown
	restored bool
	server   func(context.Context, *diagnosis) // looks at the server that has it; nil: a file
	backup   func(context.Context, io.Writer) error
	compact  func(context.Context) error
	close    func() error
}

// fileMode is what --allow-mode says.
func (a *app) fileMode() (fs.FileMode, error) {
	if a.mode == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(a.mode, 8, 9)
	if err != nil {
		return 0, usage("It is octal, such as 060.", "--allow-mode cannot be read")
	}
	return fs.FileMode(n), nil
}

// open opens a store that is there. It never makes one.
func (a *app) open(ctx context.Context, spec string, readOnly bool) (*opened, error) {
	engine, path := engineOf(spec)
	if engine.isFile() {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return nil, &failure{code: notFound, what: "there is no store at " + path, do: "Give the file of the service's store by --store."}
		}
	}
	return a.openOrMake(ctx, spec, readOnly, false)
}

// openOrMake opens a store, and makes it where there is none if make says so: for copies.
func (a *app) openOrMake(ctx context.Context, spec string, readOnly, make bool) (*opened, error) {
	mode, err := a.fileMode()
	if err != nil {
		return nil, err
	}
	engine, path := engineOf(spec)
	var o *opened
	switch engine {
	case bolt:
		st, err := boltstore.Open(path, &boltstore.Options{AllowMode: mode, ReadOnly: readOnly, LockTimeout: time.Second, Timeout: a.timeout})
		if err != nil {
			return nil, a.openError(path, err)
		}
		o = &opened{name: path, restored: st.Restored(), backup: st.Backup, compact: st.Compact, close: st.Close, named: inNamespace(st, st.Namespace)}
	case sqlite:
		st, err := sqlitestore.Open(path, &sqlitestore.Options{AllowMode: mode, Timeout: a.timeout})
		if err != nil {
			return nil, a.openError(path, err)
		}
		o = &opened{name: path, restored: st.Restored(), close: st.Close, named: inNamespace(st, st.Namespace)}
	case postgres:
		o, err = a.openPostgres(ctx, spec, make)
	case mysqlDB:
		o, err = a.openMySQL(ctx, spec, make)
	case redisDB:
		o, err = a.openRedis(ctx, spec, make)
	case etcdDB:
		o, err = a.openEtcd(ctx, spec, make)
	}
	if err != nil {
		return nil, err
	}
	o.engine, o.Store = engine, o.named(a.namespace)
	return o, nil
}

// openError says what to do about a store that does not open.
func (a *app) openError(name string, err error) error {
	f := &failure{code: failed, err: err}
	switch {
	case errors.Is(err, boltstore.ErrLocked):
		f.code = unavailable
		f.do = "A service has it open. Let the service call admin.Serve(svc, \"" + name + admin.Suffix + "\", …), or stop it first."
	case errors.Is(err, boltstore.ErrDamaged), errors.Is(err, sqlitestore.ErrDamaged):
		f.do = "Keep the file as it is, and put the latest backup back: apitoken restore BACKUP --store " + name + "."
	case errors.Is(err, boltstore.ErrMissing), errors.Is(err, sqlitestore.ErrMissing):
		f.code, f.do = notFound, "Put the file back, or a backup: apitoken restore BACKUP --store "+name+"."
	case errors.Is(err, boltstore.ErrExposed), errors.Is(err, sqlitestore.ErrExposed):
		f.code, f.do = refused, "chmod 600 "+name+", or give --allow-mode if the service's Options.AllowMode does."
	case errors.Is(err, boltstore.ErrForeign), errors.Is(err, sqlitestore.ErrForeign):
		f.code, f.do = misused, "Is this the store's file?"
	case errors.Is(err, boltstore.ErrVersion):
		f.do = "Take a newer version of this command."
	case errors.Is(err, boltstore.ErrClockBehind):
		f.do = "Look at the machine's clock."
	case errors.Is(err, pgstore.ErrMissing), errors.Is(err, mysqlstore.ErrMissing):
		f.do = "Start the service on the database once, or let a DBA run the migrations that pgstore and mysqlstore have."
	case errors.Is(err, redisstore.ErrUnsafe), errors.Is(err, mysqlstore.ErrNotDurable):
		f.code, f.do = refused, "Set the server up as it says. Where the service's options accept it, the URL says so too: docs/cli.md."
	case errors.Is(err, fs.ErrPermission):
		f.code, f.do = refused, "Run it as the user of the service."
	default:
		f.code = unavailable
	}
	return f
}

// with runs f on the service, within the time of one answer.
func (a *app) with(ctx context.Context, f func(context.Context, *service) error) error {
	return a.long(ctx, func(ctx context.Context, s *service) error {
		ctx, cancel := context.WithTimeout(ctx, a.timeout)
		defer cancel()
		return f(ctx, s)
	})
}

// long runs f on the service; f bounds each of its calls.
func (a *app) long(ctx context.Context, f func(context.Context, *service) error) (err error) {
	s, err := a.connect(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	return f(ctx, s)
}
