// Command apitoken looks into a token service and changes it, for operators:
//
//	apitoken doctor --store tokens.db
//	apitoken sessions --subject alice
//	apitoken revoke subject alice --reason "a lost laptop"
//
// It speaks to a running service by its admin API (a Unix socket beside the database, or https), and opens the store itself where
// no service runs. docs/cli.md describes each command, the exit codes and the JSON.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"os/user"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/apitoken-go/apitoken"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// Exit codes.
const (
	done        = 0
	failed      = 1 // something else went wrong
	misused     = 2 // the command line or an input cannot be
	found       = 3 // it was looked, and what was found is bad: a token is refused, a credential leaked, a store is not well
	notFound    = 4
	unavailable = 5 // the service or the store does not answer, or another process has it: try again
	refused     = 6 // it answers, and does not let this caller do it
)

// failure is an error that knows its exit code and what to do next.
type failure struct {
	code int
	what string
	do   string // empty: nothing to suggest
	err  error  // nil: what says it all
}

func (f *failure) Error() string {
	if f.err == nil {
		return f.what
	}
	if f.what == "" {
		return f.err.Error()
	}
	return f.what + ": " + f.err.Error()
}

func (f *failure) Unwrap() error { return f.err }

func usage(do, format string, args ...any) error {
	return &failure{code: misused, what: fmt.Sprintf(format, args...), do: do}
}

// errFound ends a command that found something bad and has said it.
var errFound = &failure{code: found}

// app is one call of the command.
type app struct {
	in       io.Reader
	out, err io.Writer
	began    bool // the command line was read

	store, storeFile, namespace, seal, mode, prefix, audience string
	admin, keyFile, caFile, as                                string
	json                                                      bool
	timeout                                                   time.Duration
}

func run(ctx context.Context, args []string, in io.Reader, out, errs io.Writer) int {
	a := &app{in: in, out: out, err: errs}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errs)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return done
	}
	code, text, do := a.explain(err)
	if text != "" {
		fmt.Fprintln(errs, "apitoken:", clean(text))
	}
	if do != "" {
		fmt.Fprintln(errs, "  ", do)
	}
	return code
}

// explain says what an error means to whoever typed the command.
func (a *app) explain(err error) (code int, text, do string) {
	var f *failure
	if errors.As(err, &f) {
		code, do = f.code, f.do
	}
	if err == errFound {
		return found, "", ""
	}
	text = err.Error()
	var e *apitoken.Error
	if errors.As(err, &e) && e.Detail != "" {
		text = e.Detail
		if e.Cause != nil {
			text += ": " + e.Cause.Error()
		}
		if f != nil && f.what != "" {
			text = f.what + ": " + text
		}
	}
	if code != 0 {
		return code, text, do
	}
	switch {
	case !a.began:
		return misused, text, "See apitoken help."
	case errors.Is(err, apitoken.ErrNotFound):
		return notFound, text, ""
	case errors.Is(err, apitoken.ErrInsufficientScope), errors.Is(err, apitoken.ErrDenied):
		return refused, text, "The API key must hold the scope of the admin API: scope:read to look, scope:write to change."
	case errors.Is(err, apitoken.ErrInvalidToken), errors.Is(err, apitoken.ErrNoToken):
		return refused, text, "The service does not take this API key: look at it with apitoken inspect."
	case errors.Is(err, apitoken.ErrInvalidRequest), errors.Is(err, apitoken.ErrInvalidScope):
		return misused, text, ""
	case errors.Is(err, apitoken.ErrUnavailable), errors.Is(err, apitoken.ErrLimited):
		return unavailable, text, again
	case errors.Is(err, context.DeadlineExceeded):
		return unavailable, "no answer within " + a.timeout.String(), again + " A longer --timeout helps where the store is slow."
	case errors.Is(err, context.Canceled):
		return failed, "interrupted", ""
	}
	return failed, text, ""
}

// again is what to do when nobody knows whether a call was done. Revoking twice does no harm, creating twice makes two.
const again = "It may have been done all the same. Repeat it; list first what you were creating."

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "apitoken",
		Short: "Look into a token service, and change it",
		Long: `apitoken looks into a token service and changes it.

It takes the service by --admin (a Unix socket or an https URL), or by --store: the socket beside the file if a
service answers there, else the store itself. Tokens and keys come from files or the standard input, never from
arguments, which other users of the machine can see and shells remember.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 something bad was found, 4 not found, 5 unavailable, 6 refused.`,
		SilenceErrors: true, SilenceUsage: true,
		PersistentPreRun: func(*cobra.Command, []string) { a.began = true },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return usage("See apitoken help.", "%s", withoutValue(err.Error()))
	})
	f := root.PersistentFlags()
	f.StringVar(&a.store, "store", "", "bbolt or SQLite `file`, or the URL of a store on a server, without a password: postgres://…, mysql://…, redis://…, etcd://… [APITOKEN_STORE]")
	f.StringVar(&a.storeFile, "store-file", "", "`file` that holds what --store would say, for URLs with a password")
	f.StringVar(&a.namespace, "namespace", "", "`name` of the service's namespace in the store")
	f.StringVar(&a.seal, "seal-file", "", "key `file` that seals the store's signing keys [APITOKEN_SEAL_FILE]; default: beside the file, .key")
	f.StringVar(&a.mode, "allow-mode", "", "octal `bits` that a store's file may have beside 0600, as its service's Options.AllowMode")
	f.StringVar(&a.prefix, "prefix", "", "of opaque tokens, as the service's Config.Prefix, where no service runs")
	f.StringVar(&a.audience, "audience", "", "as the service's Config.Audience, where no service runs; default: what a token says")
	f.StringVar(&a.admin, "admin", "", "Unix socket or https `URL` of a running service's admin API [APITOKEN_ADMIN]")
	f.StringVar(&a.keyFile, "api-key-file", "", "`file` with the API key for an https URL; - is the standard input [APITOKEN_API_KEY_FILE]")
	f.StringVar(&a.caFile, "ca-file", "", "PEM `file` of the CAs that vouch for an https URL; default: the system's")
	f.StringVar(&a.as, "as", "", "`name` of who acts, for the audit trail; default: the user of this machine")
	f.BoolVar(&a.json, "json", false, "print JSON")
	f.DurationVar(&a.timeout, "timeout", 30*time.Second, "for one answer of the service or the store")
	root.AddCommand(a.inspectCommand(), a.doctorCommand(), a.sessionsCommand(), a.keysCommand(), a.clientsCommand(), a.rolesCommand(),
		a.revokeCommand(), a.eventsCommand(), a.signingKeysCommand(), a.backupCommand(), a.restoreCommand(), a.copyCommand(), a.purgeCommand(),
		a.ledgerCommand(), a.leakCommand(), a.hashSecretCommand())
	return root
}

// withoutValue takes what was typed out of an error of the flags' parser: it may be a secret in the wrong place.
func withoutValue(text string) string {
	if i := strings.Index(text, `" for "`); i >= 0 && strings.HasPrefix(text, "invalid argument") {
		flag, _, _ := strings.Cut(text[i+len(`" for "`):], `"`)
		return "invalid argument for " + flag
	}
	return text
}

// exactly is the number of arguments that a command takes.
func exactly(n int, names string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) == n {
			return nil
		}
		if n == 0 {
			return usage("See apitoken help "+c.Name()+".", "%s takes no arguments", c.CommandPath())
		}
		return usage("See apitoken help "+c.Name()+".", "%s takes %s", c.CommandPath(), names)
	}
}

// actor is who acts, as it goes into the audit trail.
func (a *app) actor() string {
	if a.as != "" {
		return a.as
	}
	name := os.Getenv("SUDO_USER")
	if name == "" {
		if u, err := user.Current(); err == nil {
			name = u.Username
		}
	}
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	return name + "@" + host
}

// setting is a flag, or what the environment says in its place.
func setting(flag, env string) string {
	if flag != "" {
		return flag
	}
	return os.Getenv(env)
}
