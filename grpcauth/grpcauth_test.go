package grpcauth_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/apitokentest"
	"github.com/apitoken-go/apitoken/apitokentest/adaptertest"
	"github.com/apitoken-go/apitoken/grpcauth"
	"github.com/apitoken-go/apitoken/httpauth"
)

const (
	unary    = "/grpc.testing.TestService/UnaryCall"
	empty    = "/grpc.testing.TestService/EmptyCall"
	unlisted = "/grpc.testing.TestService/CacheableUnaryCall"
	duplex   = "/grpc.testing.TestService/FullDuplexCall"
	halves   = "/grpc.testing.TestService/HalfDuplexCall"
)

var table = map[string]apitoken.Requirement{
	unary: apitoken.AllOf(adaptertest.Scope), duplex: apitoken.AllOf(adaptertest.Scope), halves: apitoken.AllOf(adaptertest.Scope), empty: apitoken.Public(),
}

// service answers whom it sees.
type service struct {
	testpb.UnimplementedTestServiceServer
	seen  chan metadata.MD // what a unary call came with, if there is room
	ended chan error       // why a stream's context ended
	deny  func(ctx context.Context) error
}

func (s *service) UnaryCall(ctx context.Context, _ *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	select {
	case s.seen <- md:
	default:
	}
	if s.deny != nil {
		return nil, s.deny(ctx)
	}
	return &testpb.SimpleResponse{Username: apitoken.FromContext(ctx).Subject()}, nil
}

func (s *service) EmptyCall(ctx context.Context, _ *testpb.Empty) (*testpb.Empty, error) {
	return &testpb.Empty{}, nil
}

func (s *service) CacheableUnaryCall(context.Context, *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	panic("a method that no row names")
}

// FullDuplexCall says who calls, once for each message, and is otherwise blocked in Recv.
func (s *service) FullDuplexCall(stream testpb.TestService_FullDuplexCallServer) error {
	for {
		if _, err := stream.Recv(); err != nil {
			if stream.Context().Err() != nil {
				s.ended <- context.Cause(stream.Context())
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		subject := apitoken.FromContext(stream.Context()).Subject()
		if err := stream.Send(&testpb.StreamingOutputCallResponse{Payload: &testpb.Payload{Body: []byte(subject)}}); err != nil {
			return err
		}
	}
}

// HalfDuplexCall sends until it cannot.
func (s *service) HalfDuplexCall(stream testpb.TestService_HalfDuplexCallServer) error {
	for {
		if err := stream.Send(&testpb.StreamingOutputCallResponse{}); err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// start serves s behind guard and returns a client.
func start(t *testing.T, guard *grpcauth.Guard, s *service, secure ...credentials.TransportCredentials) testpb.TestServiceClient {
	t.Helper()
	ours, theirs := insecure.NewCredentials(), insecure.NewCredentials()
	if len(secure) == 2 {
		ours, theirs = secure[0], secure[1]
	}
	server := grpc.NewServer(append(guard.ServerOptions(), grpc.Creds(ours))...)
	testpb.RegisterTestServiceServer(server, s)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(theirs))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return testpb.NewTestServiceClient(conn)
}

func newService() *service {
	return &service{seen: make(chan metadata.MD, 1), ended: make(chan error, 1)}
}

func with(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

func outgoing(ctx context.Context, h http.Header) context.Context {
	for name, values := range h {
		for _, v := range values {
			ctx = metadata.AppendToOutgoingContext(ctx, strings.ToLower(name), v)
		}
	}
	return ctx
}

var statusOf = map[codes.Code]int{
	codes.OK: 200, codes.InvalidArgument: 400, codes.Unauthenticated: 401, codes.PermissionDenied: 403, codes.ResourceExhausted: 429, codes.Unavailable: 503,
}

// verdict is the one of a call's error.
func verdict(err error, subject string) adaptertest.Verdict {
	st := status.Convert(err)
	v := adaptertest.Verdict{Status: statusOf[st.Code()], Subject: subject}
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.Reason != "NO_CREDENTIAL" {
			v.Error = strings.ToLower(info.Reason)
		}
	}
	return v
}

func TestUnaryCallsGetTheVerdictsOfHTTP(t *testing.T) {
	t.Parallel()
	adaptertest.Run(t, func(t *testing.T, v apitoken.Validator) adaptertest.Adapter {
		client := start(t, grpcauth.New(v, grpcauth.Options{Methods: table, HTTP: httpauth.Options{BaseURL: apitokentest.Audience}}), newService())
		return adaptertest.Adapter{Method: "POST", URL: apitokentest.Audience + unary, Send: func(t *testing.T, h http.Header) adaptertest.Verdict {
			answer, err := client.UnaryCall(outgoing(t.Context(), h), &testpb.SimpleRequest{})
			return verdict(err, answer.GetUsername())
		}}
	})
}

func TestStreamsGetTheVerdictsOfHTTP(t *testing.T) {
	t.Parallel()
	adaptertest.Run(t, func(t *testing.T, v apitoken.Validator) adaptertest.Adapter {
		client := start(t, grpcauth.New(v, grpcauth.Options{Methods: table, HTTP: httpauth.Options{BaseURL: apitokentest.Audience}}), newService())
		return adaptertest.Adapter{Method: "POST", URL: apitokentest.Audience + duplex, Send: func(t *testing.T, h http.Header) adaptertest.Verdict {
			stream, err := client.FullDuplexCall(outgoing(t.Context(), h))
			require.NoError(t, err)
			_ = stream.Send(&testpb.StreamingOutputCallRequest{}) // io.EOF where the stream was refused: Recv says why
			answer, err := stream.Recv()
			_ = stream.CloseSend()
			return verdict(err, string(answer.GetPayload().GetBody()))
		}}
	})
}

func TestAMethodThatTheTableDoesNotNameIsRefused(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	var refused []error
	client := start(t, grpcauth.New(svc, grpcauth.Options{Methods: table, HTTP: httpauth.Options{OnRefuse: func(r *http.Request, err error) {
		assert.Equal(t, unlisted, r.URL.Path)
		refused = append(refused, err)
	}}}), newService())
	for _, ctx := range []context.Context{t.Context(), with(t.Context(), svc.Mint("alice", adaptertest.Scope))} {
		_, err := client.CacheableUnaryCall(ctx, &testpb.SimpleRequest{})
		require.Equal(t, codes.PermissionDenied, status.Code(err))
	}
	require.Len(t, refused, 2)
	require.ErrorIs(t, refused[0], apitoken.ErrDenied)
}

func TestAPublicMethodNeedsNoTokenAndRefusesABadOne(t *testing.T) {
	t.Parallel()
	client := start(t, grpcauth.New(apitokentest.New(t), grpcauth.Options{Methods: table}), newService())
	_, err := client.EmptyCall(t.Context(), &testpb.Empty{})
	require.NoError(t, err)
	_, err = client.EmptyCall(with(t.Context(), "junk"), &testpb.Empty{})
	require.Equal(t, codes.Unauthenticated, status.Code(err))
}

func TestARefusalTellsWhatWouldBeEnough(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	client := start(t, grpcauth.New(svc, grpcauth.Options{Methods: table, HTTP: httpauth.Options{Metadata: "https://api.test/metadata"}}), newService())
	var header metadata.MD
	_, err := client.UnaryCall(with(t.Context(), svc.Mint("alice")), &testpb.SimpleRequest{}, grpc.Header(&header))
	st := status.Convert(err)
	require.Equal(t, codes.PermissionDenied, st.Code())
	require.Len(t, st.Details(), 1)
	info := st.Details()[0].(*errdetails.ErrorInfo)
	assert.Equal(t, "INSUFFICIENT_SCOPE", info.Reason)
	assert.Equal(t, "apitoken", info.Domain)
	assert.Equal(t, map[string]string{"scope": "orders:read"}, info.Metadata)
	require.Len(t, header["www-authenticate"], 1)
	assert.Contains(t, header["www-authenticate"][0], `resource_metadata="https://api.test/metadata"`)
}

func TestARefusalThatPassesTellsWhenToRetry(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	_, key, err := svc.APIKeys.Create(t.Context(), apitoken.APIKeyRequest{Subject: "alice", Scopes: apitoken.Scopes{adaptertest.Scope}, Rate: apitoken.Rate{Burst: 1, Per: time.Minute}})
	require.NoError(t, err)
	client := start(t, grpcauth.New(svc, grpcauth.Options{Methods: table}), newService())
	ctx := with(t.Context(), key.Reveal())
	_, err = client.UnaryCall(ctx, &testpb.SimpleRequest{})
	require.NoError(t, err)
	_, err = client.UnaryCall(ctx, &testpb.SimpleRequest{})
	st := status.Convert(err)
	require.Equal(t, codes.ResourceExhausted, st.Code())
	require.Len(t, st.Details(), 2)
	assert.Equal(t, time.Minute, st.Details()[1].(*errdetails.RetryInfo).RetryDelay.AsDuration())
}

func TestANonceIsInTheHeader(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t, func(c *apitoken.Config) { c.Validation.RequireProofNonce = true })
	guard := grpcauth.New(svc, grpcauth.Options{Methods: table, HTTP: httpauth.Options{BaseURL: apitokentest.Audience}})
	s := newService()
	s.deny = func(ctx context.Context) error {
		return guard.Error(ctx, &apitoken.Error{Code: apitoken.ErrUseNonce, Nonce: "n-1"})
	}
	var header metadata.MD
	_, err := start(t, guard, s).UnaryCall(with(t.Context(), svc.Mint("alice", adaptertest.Scope)), &testpb.SimpleRequest{}, grpc.Header(&header))
	require.Equal(t, codes.Unauthenticated, status.Code(err))
	assert.Equal(t, []string{"n-1"}, header["dpop-nonce"])
}

func TestAHandlersOwnDecision(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	guard := grpcauth.New(svc, grpcauth.Options{Methods: table})
	for name, x := range map[string]struct {
		deny func(ctx context.Context) error
		code codes.Code
		text string
	}{
		"of scope": {func(ctx context.Context) error {
			return apitoken.FromContext(ctx).Check(apitoken.AllOf("orders:admin"))
		}, codes.PermissionDenied, "does not cover"},
		"not ours":  {func(context.Context) error { return errors.New("a secret of the database's") }, codes.Internal, "Something went wrong"},
		"not found": {func(context.Context) error { return apitoken.ErrNotFound }, codes.NotFound, ""},
		"nothing":   {func(context.Context) error { return nil }, codes.OK, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newService()
			s.deny = func(ctx context.Context) error { return guard.Error(ctx, x.deny(ctx)) }
			_, err := start(t, guard, s).UnaryCall(with(t.Context(), svc.Mint("alice", adaptertest.Scope)), &testpb.SimpleRequest{})
			if x.code == codes.OK { // the handler returns no answer then
				require.NotEqual(t, codes.Unauthenticated, status.Code(err))
				return
			}
			require.Equal(t, x.code, status.Code(err))
			require.Contains(t, err.Error(), x.text)
			require.NotContains(t, err.Error(), "secret")
		})
	}
}

func TestAStreamEndsWithItsToken(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*testing.T, *apitokentest.Service){
		"revoked": func(t *testing.T, svc *apitokentest.Service) {
			require.NoError(t, svc.Revoke(t.Context(), apitoken.BySubject("alice"), "left"))
		},
		"expired": func(_ *testing.T, svc *apitokentest.Service) { svc.Advance(time.Hour) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			svc, s := apitokentest.New(t), newService()
			client := start(t, grpcauth.New(svc, grpcauth.Options{Methods: table}), s)
			token := svc.Mint("alice", adaptertest.Scope)
			ctx, cancel := context.WithTimeout(with(t.Context(), token), 30*time.Second)
			defer cancel()

			receiving, err := client.FullDuplexCall(ctx)
			require.NoError(t, err)
			require.NoError(t, receiving.Send(&testpb.StreamingOutputCallRequest{}))
			_, err = receiving.Recv()
			require.NoError(t, err)
			sending, err := client.HalfDuplexCall(ctx)
			require.NoError(t, err)
			_, err = sending.Recv()
			require.NoError(t, err)

			end(t, svc)

			// The handler is blocked in Recv, on a client that sends nothing.
			_, err = receiving.Recv()
			require.Equal(t, codes.Unauthenticated, status.Code(err))
			require.Equal(t, "invalid_token", verdict(err, "").Error)
			require.ErrorIs(t, <-s.ended, apitoken.ErrInvalidToken)
			for err = nil; err == nil; {
				_, err = sending.Recv()
			}
			require.Equal(t, codes.Unauthenticated, status.Code(err))
		})
	}
}

func TestAStreamThatItsClientEndsIsNoRefusal(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	client := start(t, grpcauth.New(svc, grpcauth.Options{Methods: table}), newService())
	stream, err := client.FullDuplexCall(with(t.Context(), svc.Mint("alice", adaptertest.Scope)))
	require.NoError(t, err)
	require.NoError(t, stream.CloseSend())
	_, err = stream.Recv()
	require.ErrorIs(t, err, io.EOF)
}

func TestHandlersSeeNoCredentialThatIsStripped(t *testing.T) {
	t.Parallel()
	svc, s := apitokentest.New(t), newService()
	guard := grpcauth.New(svc, grpcauth.Options{Methods: table, HTTP: httpauth.Options{StripCredential: true, Sources: []httpauth.Source{{Header: "X-API-Key"}}}})
	client := start(t, guard, s)
	for _, key := range []string{"authorization", "x-api-key"} {
		value := svc.Mint("alice", adaptertest.Scope)
		if key == "authorization" {
			value = "Bearer " + value
		}
		_, err := client.UnaryCall(metadata.AppendToOutgoingContext(t.Context(), key, value, "x-other", "kept"), &testpb.SimpleRequest{})
		require.NoError(t, err)
		md := <-s.seen
		assert.Empty(t, md[key])
		assert.Equal(t, []string{"kept"}, md["x-other"])
	}
}

func TestTheOriginOfACallIsInItsEvents(t *testing.T) {
	t.Parallel()
	svc, s := apitokentest.New(t), newService()
	s.deny = func(ctx context.Context) error {
		o := apitoken.OriginOf(ctx)
		assert.Equal(t, "127.0.0.1", o.Address.String())
		assert.Contains(t, o.UserAgent, "grpc-go")
		assert.Equal(t, "r-1", o.RequestID)
		return status.Error(codes.Aborted, "seen")
	}
	client := start(t, grpcauth.New(svc, grpcauth.Options{Methods: table}), s)
	_, err := client.UnaryCall(metadata.AppendToOutgoingContext(with(t.Context(), svc.Mint("alice", adaptertest.Scope)), "x-request-id", "r-1"), &testpb.SimpleRequest{})
	require.Equal(t, codes.Aborted, status.Code(err))
}

// TestATokenOfACertificate is RFC 8705: the token is good on a connection with its certificate only.
func TestATokenOfACertificate(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	ours, mine, others := certificate(t), certificate(t), certificate(t)
	bound, err := svc.Issue(t.Context(), apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{adaptertest.Scope}, Binding: apitoken.BindCertificate(sha256.Sum256(mine.Certificate[0]))})
	require.NoError(t, err)
	guard := grpcauth.New(svc, grpcauth.Options{Methods: table})
	call := func(cert ...tls.Certificate) error {
		roots := x509.NewCertPool()
		leaf, err := x509.ParseCertificate(ours.Certificate[0])
		require.NoError(t, err)
		roots.AddCert(leaf)
		client := start(t, guard, newService(),
			credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{ours}, ClientAuth: tls.RequestClientCert}),
			credentials.NewTLS(&tls.Config{RootCAs: roots, Certificates: cert}))
		_, err = client.UnaryCall(with(t.Context(), bound.Access.Reveal()), &testpb.SimpleRequest{})
		return err
	}
	require.NoError(t, call(mine))
	require.Equal(t, codes.Unauthenticated, status.Code(call(others)))
	require.Equal(t, codes.Unauthenticated, status.Code(call()))
}

// certificate is a self-signed one for 127.0.0.1.
func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestCheckComparesTheTableWithTheServer(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	server := grpc.NewServer()
	server.RegisterService(&grpc.ServiceDesc{ServiceName: "orders.v1.Orders", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{MethodName: "List"}},
		Streams: []grpc.StreamDesc{{StreamName: "Watch"}}}, nil)
	guard := grpcauth.New(svc, grpcauth.Options{Methods: map[string]apitoken.Requirement{
		"/orders.v1.Orders/List": apitoken.Authenticated(), "/orders.v1.Orders/Wacth": apitoken.Authenticated(),
	}})
	err := guard.Check(server)
	require.ErrorContains(t, err, "Options.Methods has /orders.v1.Orders/Wacth, the server does not")
	require.ErrorContains(t, err, "the server has /orders.v1.Orders/Watch, Options.Methods does not")
	guard = grpcauth.New(svc, grpcauth.Options{Methods: map[string]apitoken.Requirement{
		"/orders.v1.Orders/List": apitoken.Authenticated(), "/orders.v1.Orders/Watch": apitoken.Authenticated(),
	}})
	require.NoError(t, guard.Check(server))
}

func TestOptionsThatCannotBe(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	for _, method := range []string{"", "/", "orders.v1.Orders/List", "/orders.v1.Orders", "/orders.v1.Orders/", "//List", "/orders.v1.Orders/*", "/a/b/c"} {
		require.Panics(t, func() {
			grpcauth.New(svc, grpcauth.Options{Methods: map[string]apitoken.Requirement{method: apitoken.Public()}})
		}, "%q", method)
	}
	require.Panics(t, func() { grpcauth.New(nil, grpcauth.Options{}) })
}

// panicking is a transport whose read panics, as a codec may.
type panicking struct{ grpc.ServerStream }

func (panicking) Context() context.Context { return context.Background() }
func (panicking) RecvMsg(any) error        { panic("codec") }

func TestAPanicWhileReceivingIsTheHandlers(t *testing.T) {
	t.Parallel()
	guard := grpcauth.New(apitokentest.New(t), grpcauth.Options{Methods: map[string]apitoken.Requirement{duplex: apitoken.Public()}})
	require.PanicsWithValue(t, "codec", func() {
		_ = guard.Stream(nil, panicking{}, &grpc.StreamServerInfo{FullMethod: duplex}, func(_ any, ss grpc.ServerStream) error {
			return ss.RecvMsg(&emptypb.Empty{})
		})
	})
}

func BenchmarkUnary(b *testing.B) {
	svc := apitokentest.New(b)
	guard := grpcauth.New(svc, grpcauth.Options{Methods: table})
	ctx := metadata.NewIncomingContext(b.Context(), metadata.Pairs("authorization", "Bearer "+svc.Mint("alice", adaptertest.Scope), "user-agent", "grpc-go", ":authority", "api.test"))
	info := &grpc.UnaryServerInfo{FullMethod: unary}
	for b.Loop() {
		if _, err := guard.Unary(ctx, nil, info, func(context.Context, any) (any, error) { return nil, nil }); err != nil {
			b.Fatal(err)
		}
	}
}
