// Stands in for livenessprobe, which no Go proxy has as a module: GET /healthz asks the driver's Probe.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/kubernetes-csi/csi-lib-utils/connection"
	"github.com/kubernetes-csi/csi-lib-utils/rpc"
	"k8s.io/klog/v2"
)

func main() {
	klog.InitFlags(nil)
	address := flag.String("csi-address", "/run/csi/socket", "where the driver listens")
	port := flag.String("health-port", "9808", "where to listen, on all addresses")
	endpoint := flag.String("http-endpoint", "", "where to listen, in place of the port")
	timeout := flag.Duration("probe-timeout", time.Second, "how long one probe may take")
	flag.String("metrics-address", "", "accepted, and not served")
	flag.Parse()
	if *endpoint == "" {
		*endpoint = net.JoinHostPort("0.0.0.0", *port)
	}

	conn, err := connection.ConnectWithoutMetrics(context.Background(), *address)
	if err != nil {
		klog.ErrorS(err, "giving up")
		os.Exit(1)
	}
	http.HandleFunc("/healthz", func(writer http.ResponseWriter, request *http.Request) {
		ctx, cancel := context.WithTimeout(request.Context(), *timeout)
		defer cancel()
		ready, err := rpc.Probe(ctx, conn)
		if err != nil || !ready {
			klog.ErrorS(err, "the driver is not ready", "ready", ready)
			http.Error(writer, fmt.Sprintf("ready: %t, error: %v", ready, err), http.StatusInternalServerError)
			return
		}
		fmt.Fprint(writer, "ok")
	})
	klog.ErrorS(http.ListenAndServe(*endpoint, nil), "giving up")
	os.Exit(1)
}
