package connectauth_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/apitokentest"
	"github.com/apitoken-go/apitoken/apitokentest/adaptertest"
	"github.com/apitoken-go/apitoken/connectauth"
	"github.com/apitoken-go/apitoken/httpauth"
)

const (
	list     = "/orders.v1.Orders/List"
	watch    = "/orders.v1.Orders/Watch"
	follow   = "/orders.v1.Orders/Follow"
	open     = "/orders.v1.Orders/Open"
	unlisted = "/orders.v1.Orders/Unlisted"
)

var table = map[string]apitoken.Requirement{
	list: apitoken.AllOf(adaptertest.Scope), watch: apitoken.AllOf(adaptertest.Scope), follow: apitoken.AllOf(adaptertest.Scope), open: apitoken.Public(),
}

type (
	none = emptypb.Empty
	text = wrapperspb.StringValue
)

// server has procedures that answer who calls: list is unary and takes GET, watch answers each message, follow sends until it
// cannot.
type server struct {
	*httptest.Server
	ended chan error       // why watch's context ended
	seen  chan http.Header // what list came with, if there is room
	deny  func(ctx context.Context) error
}

func start(t *testing.T, guard *connectauth.Guard, secure ...*tls.Config) *server {
	t.Helper()
	s := &server{ended: make(chan error, 1), seen: make(chan http.Header, 1)}
	who := func(ctx context.Context, r *connect.Request[none]) (*connect.Response[text], error) {
		select {
		case s.seen <- r.Header().Clone():
		default:
		}
		if s.deny != nil {
			return nil, s.deny(ctx)
		}
		if apitoken.FromContext(ctx).IsZero() { // a public procedure
			return connect.NewResponse(&text{}), nil
		}
		return connect.NewResponse(wrapperspb.String(apitoken.FromContext(ctx).Subject())), nil
	}
	with := connect.WithInterceptors(guard)
	mux := http.NewServeMux()
	mux.Handle(list, connect.NewUnaryHandler(list, who, with, connect.WithIdempotency(connect.IdempotencyNoSideEffects)))
	mux.Handle(open, connect.NewUnaryHandler(open, who, with))
	mux.Handle(unlisted, connect.NewUnaryHandler(unlisted, who, with))
	mux.Handle(watch, connect.NewBidiStreamHandler(watch, func(ctx context.Context, stream *connect.BidiStream[none, text]) error {
		for {
			if _, err := stream.Receive(); err != nil {
				if ctx.Err() != nil {
					s.ended <- context.Cause(ctx)
				}
				if errors.Is(err, io.EOF) {
					return nil
				}
				return err
			}
			if err := stream.Send(wrapperspb.String(apitoken.FromContext(ctx).Subject())); err != nil {
				return err
			}
		}
	}, with))
	mux.Handle(follow, connect.NewServerStreamHandler(follow, func(_ context.Context, _ *connect.Request[none], stream *connect.ServerStream[text]) error {
		for {
			if err := stream.Send(&text{}); err != nil {
				return err
			}
			time.Sleep(time.Millisecond)
		}
	}, with))
	s.Server = httptest.NewUnstartedServer(connectauth.Connection(mux))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetHTTP2(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	if len(secure) == 1 {
		s.TLS = secure[0]
		s.StartTLS()
	} else {
		s.Start()
		transport := &http.Transport{Protocols: new(http.Protocols)}
		transport.Protocols.SetUnencryptedHTTP2(true)
		t.Cleanup(transport.CloseIdleConnections)
		s.Client().Transport = transport
	}
	t.Cleanup(s.Close)
	return s
}

func (s *server) client(procedure string, o ...connect.ClientOption) *connect.Client[none, text] {
	return connect.NewClient[none, text](s.Client(), s.URL+procedure, o...)
}

func with(token string) *connect.Request[none] {
	r := connect.NewRequest(&none{})
	r.Header().Set("Authorization", "Bearer "+token)
	return r
}

var statusOf = map[connect.Code]int{
	0: 200, connect.CodeInvalidArgument: 400, connect.CodeUnauthenticated: 401, connect.CodePermissionDenied: 403, connect.CodeResourceExhausted: 429, connect.CodeUnavailable: 503,
}

func code(err error) connect.Code {
	if err == nil {
		return 0
	}
	return connect.CodeOf(err)
}

// details are the messages in an error.
func details(err error) (info *errdetails.ErrorInfo, retry *errdetails.RetryInfo) {
	var e *connect.Error
	if errors.As(err, &e) {
		for _, d := range e.Details() {
			switch m, _ := d.Value(); m := m.(type) {
			case *errdetails.ErrorInfo:
				info = m
			case *errdetails.RetryInfo:
				retry = m
			}
		}
	}
	return info, retry
}

func verdict(err error, subject string) adaptertest.Verdict {
	v := adaptertest.Verdict{Status: statusOf[code(err)], Subject: subject}
	if info, _ := details(err); info != nil && info.Reason != "NO_CREDENTIAL" {
		v.Error = strings.ToLower(info.Reason)
	}
	return v
}

var protocols = map[string][]connect.ClientOption{"Connect": nil, "gRPC": {connect.WithGRPC()}, "gRPC-Web": {connect.WithGRPCWeb()}}

func TestUnaryCallsGetTheVerdictsOfHTTP(t *testing.T) {
	t.Parallel()
	methods := map[string]string{"Connect": "POST", "gRPC": "POST", "gRPC-Web": "POST", "Connect by GET": "GET"}
	for name, method := range methods {
		options := protocols[name]
		if method == "GET" {
			options = []connect.ClientOption{connect.WithHTTPGet(), connect.WithIdempotency(connect.IdempotencyNoSideEffects)}
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			adaptertest.Run(t, func(t *testing.T, v apitoken.Validator) adaptertest.Adapter {
				s := start(t, connectauth.New(v, connectauth.Options{Methods: table, HTTP: httpauth.Options{BaseURL: apitokentest.Audience}}))
				return adaptertest.Adapter{Method: method, URL: apitokentest.Audience + list, Send: func(t *testing.T, h http.Header) adaptertest.Verdict {
					r := connect.NewRequest(&none{})
					for name, values := range h {
						r.Header()[name] = values
					}
					answer, err := s.client(list, options...).CallUnary(t.Context(), r)
					if err != nil {
						return verdict(err, "")
					}
					return verdict(err, answer.Msg.Value)
				}}
			})
		})
	}
}

func TestStreamsGetTheVerdictsOfHTTP(t *testing.T) {
	t.Parallel()
	for name, options := range protocols {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			adaptertest.Run(t, func(t *testing.T, v apitoken.Validator) adaptertest.Adapter {
				s := start(t, connectauth.New(v, connectauth.Options{Methods: table, HTTP: httpauth.Options{BaseURL: apitokentest.Audience}}))
				return adaptertest.Adapter{Method: "POST", URL: apitokentest.Audience + watch, Send: func(t *testing.T, h http.Header) adaptertest.Verdict {
					stream := s.client(watch, options...).CallBidiStream(t.Context())
					for name, values := range h {
						stream.RequestHeader()[name] = values
					}
					_ = stream.Send(&none{}) // io.EOF where the stream was refused: Receive says why
					answer, err := stream.Receive()
					_ = stream.CloseRequest()
					_ = stream.CloseResponse()
					return verdict(err, answer.GetValue())
				}}
			})
		})
	}
}

// TestARefusalIsHTTPs: in Connect's own protocol a refusal has the status and the headers of httpauth's.
func TestARefusalIsHTTPs(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	s := start(t, connectauth.New(svc, connectauth.Options{Methods: table, HTTP: httpauth.Options{Realm: "orders"}}))
	for token, want := range map[string]int{"": 401, svc.Mint("alice"): 403} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+list, strings.NewReader("{}"))
		require.NoError(t, err)
		r.Header.Set("Content-Type", "application/json")
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		answer, err := s.Client().Do(r)
		require.NoError(t, err)
		require.NoError(t, answer.Body.Close())
		assert.Equal(t, want, answer.StatusCode)
		assert.Contains(t, answer.Header.Get("WWW-Authenticate"), `Bearer realm="orders"`)
		assert.Contains(t, answer.Header.Get("WWW-Authenticate"), `scope="orders:read"`)
	}
}

func TestAProcedureThatTheTableDoesNotNameIsRefused(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	s := start(t, connectauth.New(svc, connectauth.Options{Methods: table, HTTP: httpauth.Options{OnRefuse: func(r *http.Request, err error) {
		assert.Equal(t, unlisted, r.URL.Path)
		assert.ErrorIs(t, err, apitoken.ErrDenied)
	}}}))
	for _, r := range []*connect.Request[none]{connect.NewRequest(&none{}), with(svc.Mint("alice", adaptertest.Scope))} {
		_, err := s.client(unlisted).CallUnary(t.Context(), r)
		require.Equal(t, connect.CodePermissionDenied, code(err))
	}
	require.Empty(t, s.seen)
}

func TestAPublicProcedureNeedsNoTokenAndRefusesABadOne(t *testing.T) {
	t.Parallel()
	s := start(t, connectauth.New(apitokentest.New(t), connectauth.Options{Methods: table}))
	_, err := s.client(open).CallUnary(t.Context(), connect.NewRequest(&none{}))
	require.NoError(t, err)
	_, err = s.client(open).CallUnary(t.Context(), with("junk"))
	require.Equal(t, connect.CodeUnauthenticated, code(err))
}

func TestARefusalTellsWhatWouldBeEnoughAndWhenToRetry(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	_, key, err := svc.APIKeys.Create(t.Context(), apitoken.APIKeyRequest{Subject: "alice", Scopes: apitoken.Scopes{adaptertest.Scope}, Rate: apitoken.Rate{Burst: 1, Per: time.Minute}})
	require.NoError(t, err)
	s := start(t, connectauth.New(svc, connectauth.Options{Methods: table}))
	for name, options := range protocols {
		_, err := s.client(list, options...).CallUnary(t.Context(), with(svc.Mint("alice")))
		info, _ := details(err)
		require.NotNil(t, info, name)
		assert.Equal(t, "INSUFFICIENT_SCOPE", info.Reason)
		assert.Equal(t, map[string]string{"scope": "orders:read"}, info.Metadata)

		for code(err) != connect.CodeResourceExhausted {
			_, err = s.client(list, options...).CallUnary(t.Context(), with(key.Reveal()))
		}
		_, retry := details(err)
		require.NotNil(t, retry, name)
		assert.Equal(t, time.Minute, retry.RetryDelay.AsDuration())
	}
}

func TestAHandlersOwnDecision(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	guard := connectauth.New(svc, connectauth.Options{Methods: table, HTTP: httpauth.Options{BaseURL: apitokentest.Audience}})
	for name, x := range map[string]struct {
		err  error
		code connect.Code
	}{
		"of scope": {apitokentest.Token("alice").Check(apitoken.AllOf("orders:admin")), connect.CodePermissionDenied},
		"a nonce":  {&apitoken.Error{Code: apitoken.ErrUseNonce, Nonce: "n-1"}, connect.CodeUnauthenticated},
		"not ours": {errors.New("a secret of the database's"), connect.CodeInternal},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, guard)
			s.deny = func(ctx context.Context) error { return guard.Error(ctx, x.err) }
			_, err := s.client(list).CallUnary(t.Context(), with(svc.Mint("alice", adaptertest.Scope)))
			require.Equal(t, x.code, code(err))
			require.NotContains(t, err.Error(), "secret")
			if name != "a nonce" {
				return
			}
			for protocol, options := range protocols {
				_, err := s.client(list, options...).CallUnary(t.Context(), with(svc.Mint("alice", adaptertest.Scope)))
				var e *connect.Error
				require.ErrorAs(t, err, &e)
				require.Equal(t, []string{"n-1"}, e.Meta()["Dpop-Nonce"], protocol)
			}
		})
	}
	require.NoError(t, guard.Error(t.Context(), nil))
	require.Equal(t, connect.CodeNotFound, code(guard.Error(t.Context(), apitoken.ErrNotFound)), "outside of a call")
}

func TestAStreamEndsWithItsToken(t *testing.T) {
	t.Parallel()
	for name, options := range protocols {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			svc := apitokentest.New(t)
			s := start(t, connectauth.New(svc, connectauth.Options{Methods: table}))
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			token := svc.Mint("alice", adaptertest.Scope)

			receiving := s.client(watch, options...).CallBidiStream(ctx)
			receiving.RequestHeader().Set("Authorization", "Bearer "+token)
			require.NoError(t, receiving.Send(&none{}))
			_, err := receiving.Receive()
			require.NoError(t, err)
			sending, err := s.client(follow, options...).CallServerStream(ctx, with(token))
			require.NoError(t, err)
			require.True(t, sending.Receive())

			require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice"), "left"))

			// The handler is blocked in Receive, on a client that sends nothing.
			_, err = receiving.Receive()
			require.Equal(t, "invalid_token", verdict(err, "").Error, "%v", err)
			require.ErrorIs(t, <-s.ended, apitoken.ErrRevoked)
			for sending.Receive() {
				continue
			}
			require.Equal(t, connect.CodeUnauthenticated, code(sending.Err()))
			_ = sending.Close()
			_ = receiving.CloseResponse()
		})
	}
}

func TestHandlersSeeNoCredentialThatIsStripped(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	s := start(t, connectauth.New(svc, connectauth.Options{Methods: table, HTTP: httpauth.Options{StripCredential: true, Sources: []httpauth.Source{{Header: "X-API-Key"}}}}))
	for _, name := range []string{"Authorization", "X-API-Key"} {
		r := connect.NewRequest(&none{})
		value := svc.Mint("alice", adaptertest.Scope)
		if name == "Authorization" {
			value = "Bearer " + value
		}
		r.Header().Set(name, value)
		r.Header().Set("X-Other", "kept")
		_, err := s.client(list).CallUnary(t.Context(), r)
		require.NoError(t, err)
		h := <-s.seen
		assert.Empty(t, h.Get(name))
		assert.Equal(t, "kept", h.Get("X-Other"))
	}
}

func TestATokenInAHeaderAndOneInTheQueryAreRefused(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	s := start(t, connectauth.New(svc, connectauth.Options{Methods: table}))
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+list+"?encoding=json&message=%7B%7D&connect=v1&access_token=x", nil)
	require.NoError(t, err)
	r.Header.Set("Authorization", "Bearer "+svc.Mint("alice", adaptertest.Scope))
	answer, err := s.Client().Do(r)
	require.NoError(t, err)
	require.NoError(t, answer.Body.Close())
	require.Equal(t, http.StatusBadRequest, answer.StatusCode)
}

// TestATokenOfACertificate is RFC 8705: the token is good on a connection with its certificate only.
func TestATokenOfACertificate(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	s := start(t, connectauth.New(svc, connectauth.Options{Methods: table}), &tls.Config{ClientAuth: tls.RequestClientCert})
	cert := s.TLS.Certificates[0] // of the test server, which serves as a client's too
	bound, err := svc.Issue(t.Context(), apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{adaptertest.Scope}, Binding: apitoken.BindCertificate(sha256.Sum256(cert.Certificate[0]))})
	require.NoError(t, err)
	_, err = s.client(list).CallUnary(t.Context(), with(bound.Access.Reveal()))
	require.Equal(t, connect.CodeUnauthenticated, code(err))

	own := s.Client().Transport.(*http.Transport).Clone()
	own.TLSClientConfig.Certificates = []tls.Certificate{cert}
	t.Cleanup(own.CloseIdleConnections)
	client := connect.NewClient[none, text](&http.Client{Transport: own}, s.URL+list)
	_, err = client.CallUnary(t.Context(), with(bound.Access.Reveal()))
	require.NoError(t, err)
}

func TestTheCallsOfAClientPass(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	guard := connectauth.New(svc, connectauth.Options{})
	s := start(t, connectauth.New(svc, connectauth.Options{Methods: table}))
	_, err := s.client(list, connect.WithInterceptors(guard)).CallUnary(t.Context(), with(svc.Mint("alice", adaptertest.Scope)))
	require.NoError(t, err)
	stream := s.client(watch, connect.WithInterceptors(guard)).CallBidiStream(t.Context())
	stream.RequestHeader().Set("Authorization", "Bearer "+svc.Mint("alice", adaptertest.Scope))
	require.NoError(t, stream.Send(&none{}))
	_, err = stream.Receive()
	require.NoError(t, err)
	require.NoError(t, stream.CloseRequest())
	_, err = stream.Receive()
	require.ErrorIs(t, err, io.EOF, "a stream that its client ends is no refusal")
	require.NoError(t, stream.CloseResponse())
}

func TestOptionsThatCannotBe(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	for _, method := range []string{"", "/", "orders.v1.Orders/List", "/orders.v1.Orders", "/orders.v1.Orders/", "//List", "/orders.v1.Orders/*", "/a/b/c"} {
		require.Panics(t, func() {
			connectauth.New(svc, connectauth.Options{Methods: map[string]apitoken.Requirement{method: apitoken.Public()}})
		}, "%q", method)
	}
	require.Panics(t, func() { connectauth.New(nil, connectauth.Options{}) })
}
