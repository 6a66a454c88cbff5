// Server is a small, complete HTTP API with the token service inside: login, orders behind a route table, sessions, API
// keys, logout, the console for people with a browser, and the OAuth endpoints for other programs. Run it with
//
//	go run ./examples/server -addr :8080 -db tokens.db
//
// and open http://localhost:8080/. On a public address name users of your own by -config.
//
// It reads scopes, roles, users and clients from -config, a JSON file; without one it has alice and bob to play with.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/admin"
	"github.com/apitoken-go/apitoken/oauthhttp"
	"github.com/apitoken-go/apitoken/store/boltstore"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], slog.New(slog.NewTextHandler(os.Stderr, nil)), nil)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends, then lets requests finish. ready, if not nil, is told the server's URL.
func run(ctx context.Context, args []string, log *slog.Logger, ready func(base string)) (err error) {
	flags := flag.NewFlagSet("server", flag.ContinueOnError)
	addr := flags.String("addr", "127.0.0.1:8080", "address to listen on")
	db := flags.String("db", "tokens.db", "database file; its keys are sealed under the file beside it, .key")
	issuer := flags.String("issuer", "", "public URL, such as https://auth.example.com; empty: http:// and -addr")
	file := flags.String("config", "", "JSON file with scopes, roles, users and clients; empty: a demonstration")
	cert, key := flags.String("tls-cert", "", "PEM file; empty: plain HTTP, behind something that ends TLS"), flags.String("tls-key", "", "PEM file")
	clientCA := flags.String("client-ca", "", "PEM file of the CAs that name clients (tls_client_auth)")
	socket := flags.Bool("admin", false, "let command apitoken look into the service, by a Unix socket beside the database")
	hash := flags.Bool("hash", false, "read a client's secret from the input, print what -config may hold in its place, and end")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%q is no flag", flags.Arg(0))
	}
	if *hash {
		return printHash(os.Stdin, os.Stdout)
	}
	o, err := oauthOptions(*clientCA, log)
	if err != nil {
		return err
	}
	settings, err := readSettings(*file)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	defer ln.Close() // again after Shutdown does no harm
	if *issuer == "" {
		*issuer = "http://" + loopback(ln.Addr())
		if *cert != "" {
			*issuer = "https://" + loopback(ln.Addr())
		}
	}
	st, err := boltstore.Open(*db, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	seal, err := apitoken.KeyFile(strings.TrimSuffix(*db, ".db") + ".key")
	if err != nil {
		return err
	}
	svc, err := apitoken.New(apitoken.Config{
		Issuer: *issuer, Audience: *issuer, Store: st, Seal: seal, Logger: log,
		Scopes: settings.Scopes, Roles: settings.Roles, Audiences: settings.Audiences,
		Limits: apitoken.Limits{APIKeysPerSubject: 20, GrantsPerSubject: 20},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, svc.Close()) }()
	if *socket {
		operators, err := admin.Serve(svc, *db+admin.Suffix, admin.Options{Backup: st.Backup})
		if err != nil {
			return err
		}
		defer operators.Close()
	}
	a, err := newApp(ctx, svc, settings, *issuer, o)
	if err != nil {
		return err
	}
	defer a.console.Close()
	srv := &http.Server{Handler: a, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)}
	ended := make(chan error, 1)
	go func() {
		if *cert == "" {
			ended <- srv.Serve(ln)
			return
		}
		// Certificates are asked for, not demanded: most clients have none. Whose count is the endpoints' business.
		srv.TLSConfig = &tls.Config{ClientAuth: tls.RequestClientCert}
		ended <- srv.ServeTLS(ln, *cert, *key)
	}()
	log.Info("serving", "url", *issuer)
	if ready != nil {
		ready("http://" + ln.Addr().String())
	}
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	log.Info("stopping")
	grace, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return srv.Shutdown(grace)
}

func oauthOptions(clientCA string, log *slog.Logger) (*oauthhttp.Options, error) {
	o := &oauthhttp.Options{Logger: log}
	if clientCA == "" {
		return o, nil
	}
	pem, err := os.ReadFile(clientCA)
	if err != nil {
		return nil, err
	}
	o.ClientCAs = x509.NewCertPool()
	if !o.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", clientCA)
	}
	return o, nil
}

func printHash(in io.Reader, out io.Writer) error {
	line, err := bufio.NewReader(io.LimitReader(in, 1024)).ReadString('\n')
	if err != nil && err != io.EOF {
		return err
	}
	hash, err := apitoken.HashSecret(apitoken.NewSecret(strings.TrimRight(line, "\r\n")))
	if err == nil {
		fmt.Fprintln(out, hash)
	}
	return err
}

// loopback is the address as a browser on this machine reaches it.
func loopback(a net.Addr) string {
	u := url.URL{Host: a.String()}
	if ip := net.ParseIP(u.Hostname()); ip != nil && ip.IsUnspecified() {
		return net.JoinHostPort("localhost", u.Port())
	}
	return u.Host
}
