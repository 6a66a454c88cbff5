package otelapitoken_test

import (
	"context"
	"fmt"
	"log"

	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/otelapitoken"
	"github.com/apitoken-go/apitoken/store/memstore"
)

func ExampleStart() {
	svc, err := apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: memstore.New(), InsecureKeysInStore: true})
	if err != nil {
		log.Fatal(err)
	}
	defer svc.Close()
	reader := sdkmetric.NewManualReader() // in a host: a periodic reader with an OTLP exporter
	telemetry, err := otelapitoken.Start(svc, otelapitoken.Config{MeterProvider: sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))})
	if err != nil {
		log.Fatal(err)
	}
	defer telemetry.Close()

	if _, err := svc.Issue(context.Background(), apitoken.Request{Subject: "alice"}); err != nil {
		log.Fatal(err)
	}
	var data metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &data); err != nil {
		log.Fatal(err)
	}
	for _, m := range data.ScopeMetrics[0].Metrics {
		if sum, ok := m.Data.(metricdata.Sum[int64]); ok {
			for _, p := range sum.DataPoints {
				op, _ := p.Attributes.Value("op")
				fmt.Println(m.Name, op.AsString(), p.Value)
			}
		}
	}
	// Output: apitoken.operations issue 1
}
