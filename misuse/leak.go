package misuse

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/internal/opaque"
)

// Leak is a credential of the service that was reported or presented, and is ended.
type Leak struct {
	// Target is what was revoked: the token's grant, or the API key; zero for a client secret or a ticket. The event
	// token.leaked names its owner, or the client.
	Target apitoken.Target
	By     string // "scanner" or "holder"
	Type   string // scanner: the name of the pattern that matched
	URL    string // scanner: where it was found, may be empty
	Source string // scanner: in what it was found, such as "commit"
}

// leaks revokes what is reported, and remembers what it has revoked: whoever holds one old token can present it all day,
// and must not fill the store with rules.
type leaks struct {
	svc    *apitoken.Service
	notify func(context.Context, Leak)
	log    *slog.Logger

	mu   sync.Mutex      // guards done
	done map[string]bool // by the target's text: a token shown beside it is no part of what was revoked
}

const (
	maxDone     = 4096 // targets that are remembered
	leakTimeout = 20 * time.Second
)

func newLeaks(svc *apitoken.Service, notify func(context.Context, Leak), log *slog.Logger) leaks {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return leaks{svc: svc, notify: notify, log: log, done: map[string]bool{}}
}

// revoke ends token if it is the service's, whatever its kind, with its event, and tells the host. An error means that the report must come again.
func (l *leaks) revoke(ctx context.Context, token, reason string, leak Leak) error {
	t, err := l.svc.TargetOf(ctx, token)
	if errors.Is(err, apitoken.ErrNotFound) {
		// No token. A client secret or a ticket is ended here; what has ended already is not ended again.
		if !opaqueToken(token) {
			return nil
		}
		n, err := l.svc.RevokeLeaked(ctx, []byte(token), reason)
		if err == nil && n > 0 {
			l.tell(ctx, leak)
		}
		return err
	}
	if err != nil {
		return err
	}
	l.mu.Lock()
	done := l.done[t.String()]
	l.mu.Unlock()
	if done {
		return nil
	}
	n, err := l.svc.RevokeLeaked(ctx, []byte(token), reason)
	if err == nil && n == 0 { // it knows the token and did not find it in itself
		err = l.svc.Revoke(ctx, t, reason)
	}
	if err != nil {
		return err
	}
	l.mu.Lock()
	if len(l.done) >= maxDone {
		clear(l.done)
	}
	l.done[t.String()] = true
	l.mu.Unlock()
	// The text leaves out whose token was shown, so that the host can compare the target with its own.
	if err := leak.Target.UnmarshalText([]byte(t.String())); err != nil {
		return err
	}
	l.tell(ctx, leak)
	return nil
}

// opaqueToken reports whether text is, as a whole, of the shape of this module's opaque credentials.
func opaqueToken(text string) bool {
	for found := range opaque.Find([]byte(text)) {
		return string(found) == text
	}
	return false
}

// tell calls the host, whose panic must not keep the next token from being revoked.
func (l *leaks) tell(ctx context.Context, leak Leak) {
	if l.notify == nil {
		return
	}
	defer func() {
		if p := recover(); p != nil {
			l.log.Error("misuse: Notify panicked", "target", leak.Target, "panic", p)
		}
	}()
	l.notify(ctx, leak)
}

// work is the context of what a request has begun: it goes on when the caller hangs up.
func work(r *http.Request, who string) (context.Context, context.CancelFunc) {
	ctx := context.WithoutCancel(r.Context())
	if o := apitoken.OriginOf(ctx); !o.Address.IsValid() { // no adapter has said it
		if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
			o.Address, _ = netip.ParseAddr(host)
		}
		o.UserAgent = r.UserAgent()
		ctx = apitoken.WithOrigin(ctx, o)
	}
	return context.WithTimeout(apitoken.WithActor(ctx, who), leakTimeout)
}

// answer writes a constant body.
func answer(w http.ResponseWriter, status int, body string) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if strings.HasPrefix(body, "{") || strings.HasPrefix(body, "[") {
		h.Set("Content-Type", "application/json")
	} else {
		h.Set("Content-Type", "text/plain; charset=utf-8")
		body += "\n"
	}
	switch status {
	case http.StatusServiceUnavailable:
		h.Set("Retry-After", "5")
	case http.StatusMethodNotAllowed:
		h.Set("Allow", http.MethodPost)
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body))
}
