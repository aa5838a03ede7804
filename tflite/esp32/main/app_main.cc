// The application (../../micro/sky_app.cc) where ESP-IDF starts it.

#include "esp32.h"
#include "esp_log.h"
#include "esp_sleep.h"
#include "freertos/FreeRTOS.h"
#include "freertos/task.h"
#include "sdkconfig.h"
#include "sky_app.h"

// Turns the chip off; then it starts anew with app_main().
static void Sleep() { esp_deep_sleep(CONFIG_SKY_SECONDS * 1000000ULL); }

extern "C" void app_main() {
  if (!camera_start() || !sky_setup()) {
    ESP_LOGE("sky", "next try in %d s", CONFIG_SKY_SECONDS);
    Sleep();
  }
#if CONFIG_SKY_WEB_PAGE
  web_start();
#endif
  for (;;) {
    sky_loop();
#if CONFIG_SKY_DEEP_SLEEP
    Sleep();
#else
    vTaskDelay(pdMS_TO_TICKS(CONFIG_SKY_SECONDS * 1000));
#endif
  }
}
