package remote

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken"
)

// Why an issuer can't be followed, for errors.Is on Observation.Err and on the Cause of the *apitoken.Error that Ready and
// Validate return. The text of each error says more, and no text holds the client's secret or a token.
var (
	// ErrClient: the issuer refuses Config.Client. Its ID, secret or certificate is wrong (401), it was disabled, or it doesn't
	// hold FollowScope (403).
	ErrClient = errors.New("remote: the issuer refuses this process's client")
	// ErrTLS: no connection that can be trusted. The certificate is of an unknown authority, of another host or has expired, the
	// server refuses ours, or doesn't speak TLS.
	ErrTLS = errors.New("remote: no trusted TLS connection to the issuer")
	// ErrClock: the issuer's certificate is not valid yet, by this process's clock.
	ErrClock = errors.New("remote: this process's clock is behind the issuer's certificate")
	// ErrNotIssuer: what answers is not the issuer that Config.Issuer names: 404, a redirect, no JSON, another issuer's metadata,
	// or an answer that makes no sense.
	ErrNotIssuer = errors.New("remote: what answers is not the issuer")
	// ErrUnreachable: nothing answers, not in time, or only to say that it can't now (429, 5xx).
	ErrUnreachable = errors.New("remote: the issuer cannot be reached")
)

// problem is an error of one of the classes above. Its text is its own; what lies behind it is for errors.Is and errors.As alone.
type problem struct {
	class error
	text  string
	cause error // may be nil
}

func (p *problem) Error() string { return p.class.Error() + ": " + p.text }

func (p *problem) Unwrap() []error {
	if p.cause == nil {
		return []error{p.class}
	}
	return []error{p.class, p.cause}
}

func notIssuer(format string, args ...any) error {
	return &problem{class: ErrNotIssuer, text: fmt.Sprintf(format, args...)}
}

// failed classifies what net/http returns instead of an answer to what. A request's URL and credential don't show in it: a host's
// own transport may put them into its errors.
func failed(what string, err error, client *apitoken.ClientAuth) error {
	var u *url.Error
	if errors.As(err, &u) { // its text holds the URL, whose query may hold what no log should
		err = u.Err
	}
	p := &problem{class: ErrUnreachable, text: what + ": " + hide(err.Error(), client), cause: err}

	var op *net.OpError
	var record tls.RecordHeaderError
	var verification *tls.CertificateVerificationError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		p.class = ErrTLS
		// The time that it was verified at is the transport's own, so that only the detail tells which end was missed.
		if strings.Contains(invalid.Detail, " is before ") {
			p.class = ErrClock
		}
		p.text += " (the certificate's dates or this process's clock are wrong)"
	case errors.As(err, &verification), errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		p.class = ErrTLS
	case errors.As(err, &op) && (op.Op == "remote error" || op.Op == "local error"): // a TLS alert
		p.class = ErrTLS
	}
	return p
}

// status classifies an answer that is not the one wanted.
func status(what string, res *http.Response, client *apitoken.ClientAuth) error {
	code := res.StatusCode
	text := what + ": status " + strconv.Itoa(code)
	switch {
	case client != nil && code == http.StatusUnauthorized:
		proof := "secret"
		if client.Secret.IsZero() {
			proof = "certificate"
		}
		return &problem{class: ErrClient, text: text + fmt.Sprintf(": the ID %q or its %s is wrong, or the client is disabled", client.ID, proof)}
	case client != nil && code == http.StatusForbidden:
		return &problem{class: ErrClient, text: text + fmt.Sprintf(": the client %q does not hold the scope %s", client.ID, FollowScope)}
	case code == http.StatusTooManyRequests && client != nil:
		return &problem{class: ErrUnreachable, text: text + fmt.Sprintf(": too many requests of the client %q, or with wrong secrets", client.ID)}
	case code == http.StatusTooManyRequests || code >= 500:
		return &problem{class: ErrUnreachable, text: text}
	case code >= 300 && code < 400:
		return notIssuer("%s: a redirect, which is not followed", text)
	}
	return notIssuer("%s", text)
}

// hide takes a client's secret out of a text, in the forms in which a request holds it.
func hide(text string, client *apitoken.ClientAuth) string {
	if client == nil || client.Secret.IsZero() {
		return text
	}
	secret := client.Secret.Reveal()
	escaped := url.QueryEscape(secret)
	basic := base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(client.ID) + ":" + escaped))
	return strings.NewReplacer(basic, "…", escaped, "…", secret, "…").Replace(text)
}

// dateOf is what the clock of whoever made an answer shows, by its Date and Age headers.
func dateOf(res *http.Response) (time.Time, bool) {
	at, err := http.ParseTime(res.Header.Get("Date"))
	if err != nil {
		return time.Time{}, false
	}
	if age, err := strconv.Atoi(res.Header.Get("Age")); err == nil && age > 0 { // a cache's answer (RFC 9111 §5.1)
		at = at.Add(time.Duration(age) * time.Second)
	}
	return at, true
}
