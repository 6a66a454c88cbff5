// Package bodytime bounds how long a request's body may take to arrive, whoever runs the server. net/http waits for the rest of a
// body before it sends the answer of a handler that has not read it, and a server without ReadTimeout waits without end.
package bodytime

import (
	"errors"
	"io"
	"net/http"
	"time"
)

// Default is the time for a whole body of a few KiB.
const Default = 10 * time.Second

// Front sets the deadline before next decides anything, so that it holds for refused methods, paths and media types too. The
// deadline is cleared when the body has been read to its end: later it would end the request's context. A body that next
// leaves unread keeps the deadline, and the server closes the connection then.
func Front(d time.Duration, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, done := r.Body.(*body); done || !hasBody(r) { // a front around this one is the caller's choice of time
			next.ServeHTTP(w, r)
			return
		}
		rc := http.NewResponseController(w)
		if rc.SetReadDeadline(time.Now().Add(d)) != nil { // such as a recorder in a test
			next.ServeHTTP(w, r)
			return
		}
		bounded := *r
		bounded.Body = &body{ReadCloser: r.Body, rc: rc}
		next.ServeHTTP(w, &bounded)
	})
}

// Refused sets the deadline for what is left of a body whose request is refused now. Unlike Front it lets a handler that accepts
// the request read as slowly as its host allows.
func Refused(w http.ResponseWriter, r *http.Request) {
	if r != nil && hasBody(r) {
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(Default))
	}
}

func hasBody(r *http.Request) bool {
	return r.Body != nil && r.Body != http.NoBody && r.ContentLength != 0
}

// body clears the deadline at its end.
type body struct {
	io.ReadCloser
	rc *http.ResponseController
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		_ = b.rc.SetReadDeadline(time.Time{})
	}
	return n, err
}
