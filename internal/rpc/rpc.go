// Package rpc lets gRPC and Connect calls be decided as HTTP requests are: a call becomes the request that it is, and the answer of
// an HTTP handler becomes a code of gRPC with its details. So there is one place that reads credentials and one that judges errors:
// package httpauth, between NewRequest and Answer.
//
// It knows no other package of this project: codes are the numbers of google.rpc.Code. grpcauth and connectauth call it.
package rpc

import (
	"context"
	"encoding/json"
	"net/http"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Codes of google.rpc.Code.
const (
	InvalidArgument   = 3
	NotFound          = 5
	PermissionDenied  = 7
	ResourceExhausted = 8
	Internal          = 13
	Unavailable       = 14
	Unauthenticated   = 16
)

// Domain is the ErrorInfo.domain of every refusal.
const Domain = "apitoken"

// IsMethod reports whether full is the full name of a method, such as /orders.v1.Orders/List.
func IsMethod(full string) bool {
	service, name, ok := strings.Cut(strings.TrimPrefix(full, "/"), "/")
	return ok && full[0] == '/' && service != "" && name != "" && !strings.ContainsAny(name, "/*")
}

// Credentials are the headers that a call's credential comes in by RFC 6750 and RFC 9449.
func Credentials() []string { return []string{"Authorization", "Dpop"} }

// NewRequest is the HTTP request of a call. procedure is "/package.Service/Method"; header is kept.
func NewRequest(ctx context.Context, method, procedure, remoteAddr string, header http.Header) *http.Request {
	r := &http.Request{Method: method, URL: &url.URL{Path: procedure}, Proto: "HTTP/2.0", ProtoMajor: 2, Header: header, Body: http.NoBody, RemoteAddr: remoteAddr}
	if host := header["Host"]; len(host) == 1 {
		r.Host = host[0]
	}
	return r.WithContext(ctx)
}

// Header makes an HTTP header of a call's metadata: canonical names, values without the white space around them, which net/http
// takes away as well (RFC 9110 §5.5). Pseudo-headers are left out, but :authority, which is Host.
func Header(metadata map[string][]string) http.Header {
	h := make(http.Header, len(metadata))
	for name, values := range metadata {
		switch {
		case name == ":authority":
			name = "Host"
		case strings.HasPrefix(name, ":"):
			continue
		}
		trimmed := make([]string, len(values))
		for i, v := range values {
			trimmed[i] = textproto.TrimString(v)
		}
		name = http.CanonicalHeaderKey(name)
		h[name] = append(h[name], trimmed...)
	}
	return h
}

// Answer is the http.ResponseWriter that takes what httpauth answers. The zero value is ready.
type Answer struct {
	header http.Header
	status int
	body   []byte
}

// Header implements http.ResponseWriter.
func (a *Answer) Header() http.Header {
	if a.header == nil {
		a.header = http.Header{}
	}
	return a.header
}

// WriteHeader implements http.ResponseWriter.
func (a *Answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
}

func (a *Answer) Write(b []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	a.body = append(a.body, b...)
	return len(b), nil
}

// Refusal is what a caller is told.
type Refusal struct {
	Code    uint32        // of google.rpc.Code
	Message string        // constant for each reason
	Reason  string        // ErrorInfo.reason: the error code of the challenge in upper case, or NO_CREDENTIAL
	Scope   string        // what would have been enough; empty: no scope was missing
	Retry   time.Duration // with ResourceExhausted and Unavailable
	// Header has WWW-Authenticate and DPoP-Nonce, where they are due.
	Header http.Header
}

// Refusal is the answer as a code and its details. An answer that is none of httpauth's is Internal.
func (a *Answer) Refusal() Refusal {
	var problem struct{ Detail, Error, Scope string }
	_ = json.Unmarshal(a.body, &problem) // what is none leaves the fields empty
	r := Refusal{Code: codeOf(a.status), Message: problem.Detail, Reason: strings.ToUpper(problem.Error), Scope: problem.Scope, Header: http.Header{}}
	switch {
	case r.Reason != "":
	case a.status == http.StatusUnauthorized:
		r.Reason, r.Message = "NO_CREDENTIAL", "The call carries no credential."
	default:
		r.Reason, r.Message = "SERVER_ERROR", "Something went wrong."
	}
	for _, name := range [...]string{"Www-Authenticate", "Dpop-Nonce"} {
		if v := a.header[name]; len(v) > 0 {
			r.Header[name] = v
		}
	}
	if n, err := strconv.Atoi(a.header.Get("Retry-After")); err == nil {
		r.Retry = time.Duration(n) * time.Second
	}
	return r
}

func codeOf(status int) uint32 {
	switch status {
	case http.StatusBadRequest:
		return InvalidArgument
	case http.StatusUnauthorized:
		return Unauthenticated
	case http.StatusForbidden:
		return PermissionDenied
	case http.StatusNotFound:
		return NotFound
	case http.StatusTooManyRequests:
		return ResourceExhausted
	case http.StatusServiceUnavailable:
		return Unavailable
	}
	return Internal
}

// Receive runs one read of a stream's message, until token ends: its error is then token's cause, although the transport can't be
// interrupted. That read ends in a goroutine of its own once the handler has returned, which closes the stream; the message it
// reads is lost. Nothing may be received after such an error, nor may the message's memory be used. call is the stream's own context,
// whose end the transport notices by itself; token is its child.
func Receive(call, token context.Context, read func() error) error {
	if err := Ended(call, token); err != nil {
		return err
	}
	type result struct {
		err      error
		panicked any
	}
	done := make(chan result, 1)
	go func() {
		var r result
		defer func() {
			r.panicked = recover()
			done <- r
		}()
		r.err = read()
	}()
	var r result
	select {
	case r = <-done:
	case <-token.Done():
		if err := Ended(call, token); err != nil {
			return err
		}
		r = <-done
	}
	if r.panicked != nil {
		panic(r.panicked) // where the host's own recovery sees it
	}
	return r.err
}

// Ended is the cause of token's end, where call has not ended.
func Ended(call, token context.Context) error {
	if token.Err() == nil || call.Err() != nil {
		return nil
	}
	return context.Cause(token)
}
